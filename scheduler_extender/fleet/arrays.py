"""The cluster's GPUs as arrays: one column a node, one row a GPU.

Shapes are `[rows, columns]` unless said otherwise; rows beyond a node's GPUs do not `exist`. Memory is MiB, cores are
percent of one GPU. Only `ledger` writes columns, each as a whole and from the node's facts, so that nothing drifts.

Rows come first because every operation covers all nodes at once: it then runs over one contiguous line per GPU.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_sharing.core import gpus, identifiers, placement, policies, requests, topology
from gpu_sharing.core.rejections import Reason

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]
Ids = npt.NDArray[np.int32]

_FLAGS = ("healthy", "cordoned", "unknown", "usable", "shareable", "empty")
_AMOUNTS = ("memory_used", "cores_used", "slots_used", "exclusive_used", "memory_free", "cores_free")
_IN_SNAPSHOT = (
    "exists", "usable", "type_id", "memory_total", "cores_total", "memory_free", "cores_free", "shareable", "empty",
    "host_cpu_free", "host_cpu_total", "host_memory_free", "host_memory_total",
)  # fmt: skip
_FIRST_COLUMNS = 64
_FIRST_ROWS = 8


class Interned:
    """Small numbers for words, such as the type names of GPUs; a number is reused once its word is released.

    Attributes:
        words: Word of each number; an empty string for a number that is free.
    """

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}
        self._users: list[int] = []
        self._free: list[int] = []

    def number(self, word: str) -> int:
        """Return the number of a word in use, -1 for any other."""
        return self._numbers.get(word, -1)

    def take(self, word: str) -> int:
        """Return the number of a word, for one more user of it."""
        number = self._numbers.get(word)
        if number is None:
            number = self._free.pop() if self._free else len(self.words)
            if number == len(self.words):
                self.words.append("")
                self._users.append(0)
            self.words[number] = word
            self._numbers[word] = number
        self._users[number] += 1
        return number

    def give_back(self, number: int) -> None:
        """Count one user less."""
        self._users[number] -= 1
        if not self._users[number]:
            del self._numbers[self.words[number]]
            self.words[number] = ""
            self._free.append(number)

    def matching(self, accepts: Callable[[str], bool]) -> Bools:
        """Return for each number whether its word is accepted."""
        return np.array([accepts(word) for word in self.words] or [True], np.bool_)


def _ints(values: Iterable[int]) -> Ints:
    """Raises OverflowError for what is beyond 64 bits."""
    return np.array(list(values), np.int64)


def _bools(values: Iterable[bool]) -> Bools:
    return np.array(list(values), np.bool_)


class Arrays:
    """What every node has, and what of it is allocated to bound and assumed pods or reserved for pending ones."""

    def __init__(self) -> None:
        self.names: list[identifiers.NodeName] = []
        """Name of each column in use; an empty string marks a free column."""
        self.column_of: dict[identifiers.NodeName, int] = {}
        self._free: list[int] = []
        self.inventory_generation = 0
        """Grows whenever a column gets another node or other GPUs."""
        self._by_percent: dict[int, Ints] = {}
        self._name_rank: tuple[int, Ints] | None = None
        self.types = Interned()
        self.modes = Interned()
        self._places: dict[str, set[tuple[int, int]]] = {}
        self._uuids: dict[int, tuple[str, ...]] = {}
        self.links: dict[int, topology.Links] = {}
        """Link scores between the GPUs of a column, for columns that publish them."""
        self._allocate(_FIRST_ROWS, _FIRST_COLUMNS)

    def _allocate(self, rows: int, columns: int) -> None:
        old = getattr(self, "memory_total", np.zeros((0, 0))).shape

        def grown(name: str, dtype: type, shape: tuple[int, ...]) -> Any:
            array: npt.NDArray[Any] = np.zeros(shape, dtype)
            if 0 not in old:
                before = getattr(self, name)
                array[tuple(slice(0, length) for length in before.shape)] = before
            return array

        whole, line = (rows, columns), (columns,)
        self.exists: Bools = grown("exists", np.bool_, whole)
        self.healthy: Bools = grown("healthy", np.bool_, whole)
        self.cordoned: Bools = grown("cordoned", np.bool_, whole)
        self.unknown: Bools = grown("unknown", np.bool_, whole)
        self.usable: Bools = grown("usable", np.bool_, whole)
        """Exists, is healthy, not cordoned, usage known, and not in MIG mode, on a node that may be chosen."""
        self.type_id: Ids = grown("type_id", np.int32, whole)
        """Number of the type in `types`."""
        self.mode_id: Ids = grown("mode_id", np.int32, whole)
        self.numa: Ints = grown("numa", np.int64, whole)
        self.memory_total: Ints = grown("memory_total", np.int64, whole)
        self.cores_total: Ints = grown("cores_total", np.int64, whole)
        self.slots_total: Ints = grown("slots_total", np.int64, whole)
        self.memory_used: Ints = grown("memory_used", np.int64, whole)
        self.cores_used: Ints = grown("cores_used", np.int64, whole)
        self.slots_used: Ints = grown("slots_used", np.int64, whole)
        self.exclusive_used: Ints = grown("exclusive_used", np.int64, whole)
        self.memory_free: Ints = grown("memory_free", np.int64, whole)
        self.cores_free: Ints = grown("cores_free", np.int64, whole)
        self.shareable: Bools = grown("shareable", np.bool_, whole)
        """Usable, with a free slot, and not allocated exclusively."""
        self.empty: Bools = grown("empty", np.bool_, whole)
        """Usable, with a free slot, and without any allocation."""
        self.fullness: Floats = grown("fullness", np.float64, whole)
        """`policies.fullness` of each GPU, everything counted alike."""
        self.standing: Codes = grown("standing", np.int8, line)
        """`[columns]`: a `Reason` why the node is out of question whatever is free, or NONE."""
        self.unavailable: Codes = grown("unavailable", np.int8, line)
        """`[columns]`: `Ledger.unavailable`. It refuses no pod: kube-scheduler does."""
        self.free_tokens: Ints = grown("free_tokens", np.int64, line)
        """`[columns]`: device ids of the node that are not allocated."""
        self.host_cpu_free: Ints = grown("host_cpu_free", np.int64, line)
        """`[columns]`: CPU of the node that no pod has requested, in thousandths of a core."""
        self.host_memory_free: Ints = grown("host_memory_free", np.int64, line)
        """`[columns]`: memory of the node that no pod has requested, in MiB."""
        self.host_cpu_total: Ints = grown("host_cpu_total", np.int64, line)
        """`[columns]`: allocatable CPU of the node, in thousandths of a core."""
        self.host_memory_total: Ints = grown("host_memory_total", np.int64, line)
        """`[columns]`: allocatable memory of the node, in MiB."""
        self.sums_used: Ints = grown("sums_used", np.int64, (3, columns))
        """`[3, columns]`: slots, cores and memory allocated on the whole node."""
        self.sums_total: Ints = grown("sums_total", np.int64, (3, columns))
        """`[3, columns]`: slots, cores and memory of the whole node."""

    def snapshot(self) -> "Arrays":
        """Return a copy of what a thread beside the loop reads, which does not change; other arrays are shared."""
        one = copy.copy(self)
        for name in _IN_SNAPSHOT:
            setattr(one, name, getattr(self, name).copy())
        one.names, one.types = list(self.names), copy.copy(self.types)
        one.types.words = list(self.types.words)
        return one

    @property
    def columns(self) -> int:
        """Columns in use or freed; arrays are longer."""
        return len(self.names)

    @property
    def live(self) -> int:
        """How many columns belong to a node."""
        return len(self.column_of)

    def column(self, name: identifiers.NodeName) -> int:
        """The column of that node, made where there is none."""
        number = self.column_of.get(name)
        if number is not None:
            return number
        if self._free:
            column = self._free.pop()
            self.names[column] = name
        else:
            column = len(self.names)
            self.names.append(name)
            rows, columns = self.exists.shape
            if column >= columns:
                self._allocate(rows, columns * 2)
        self.column_of[name] = column
        self.write(column, placement.NodeState(name, standing=Reason.NODE_UNKNOWN), inventory_changed=True)
        return column

    def release(self, name: identifiers.NodeName) -> None:
        """Forget a node; its column is used again."""
        column = self.column_of[name]
        self.write(column, placement.NodeState(name, standing=Reason.NODE_UNKNOWN), inventory_changed=True)
        del self.column_of[name]
        self.names[column] = identifiers.NodeName("")
        self._free.append(column)

    def write(self, column: int, node: placement.NodeState, *, inventory_changed: bool) -> None:
        """Replace one column by a node's state, `used` including what reservations of others take.

        Everything is computed before the first cell is written, so that a column is never half of one state and half of
        another.
        """
        states = node.states
        inventory = self._inventory_values(node) if inventory_changed else None
        values = self._usage_values(node)
        free_tokens = np.int64(node.slots_total - node.slots_used)
        sums_used = _ints(
            (
                node.slots_used,
                sum(state.allocated.cores_percent for state in states),
                sum(state.allocated.memory_mib for state in states),
            )
        )
        if len(states) > self.exists.shape[0]:
            self._allocate(len(states), self.exists.shape[1])
        if inventory is not None:
            self._write_inventory(column, node, inventory)
        self._put(column, values, clear_rest=inventory_changed)
        self.standing[column] = node.standing
        self.free_tokens[column] = free_tokens
        self.sums_used[:, column] = sums_used

    def set_host(self, column: int, total: tuple[int, int], free: tuple[int, int]) -> bool:
        """Write a node's CPU and memory, in thousandths of a core and MiB. Returns whether that changed."""
        lines = (self.host_cpu_total, self.host_memory_total, self.host_cpu_free, self.host_memory_free)
        before = [line[column] for line in lines]
        for line, value in zip(lines, (*total, *free), strict=True):
            line[column] = value
        return before != [*total, *free]

    def _put(self, column: int, values: Mapping[str, npt.NDArray[Any]], *, clear_rest: bool) -> None:
        for name, column_values in values.items():
            array = getattr(self, name)
            array[: len(column_values), column] = column_values
            if clear_rest:
                array[len(column_values) :, column] = 0

    def _usage_values(self, node: placement.NodeState) -> dict[str, npt.NDArray[Any]]:
        """What changes as pods come and go, one value a GPU."""
        states, eligible = node.states, node.standing is Reason.NONE
        flags, amounts = [], []
        for state in states:
            gpu, used = state.gpu, state.allocated
            usable = (
                eligible
                and gpu.healthy
                and not state.cordoned
                and not state.allocation_unknown
                and gpu.mode != gpus.MIG_MODE
            )
            open_slot = usable and used.slots < gpu.slots
            flags.append(
                (
                    gpu.healthy, state.cordoned, state.allocation_unknown, usable, open_slot and not used.exclusive,
                    open_slot and not used.slots,
                )
            )  # fmt: skip
            amounts.append(
                (
                    used.memory_mib, used.cores_percent, used.slots, used.exclusive, gpu.memory_mib - used.memory_mib,
                    gpu.cores_percent - used.cores_percent,
                )
            )  # fmt: skip
        bools = np.array(flags, np.bool_).reshape(len(states), len(_FLAGS)).T
        ints = np.array(amounts, np.int64).reshape(len(states), len(_AMOUNTS)).T
        fullness = np.array([policies.fullness(one) for one in states], np.float64)
        return {**dict(zip(_FLAGS, bools, strict=True)), **dict(zip(_AMOUNTS, ints, strict=True)), "fullness": fullness}

    def _inventory_values(self, node: placement.NodeState) -> dict[str, npt.NDArray[Any]]:
        """What stays while the node has the same GPUs, one value a GPU."""
        all_gpus = [state.gpu for state in node.states]
        return {
            "exists": _bools(True for _ in all_gpus),
            "numa": _ints(gpu.numa for gpu in all_gpus),
            "memory_total": _ints(gpu.memory_mib for gpu in all_gpus),
            "cores_total": _ints(gpu.cores_percent for gpu in all_gpus),
            "slots_total": _ints(gpu.slots for gpu in all_gpus),
        }

    def _write_inventory(self, column: int, node: placement.NodeState, values: Mapping[str, npt.NDArray[Any]]) -> None:
        for row, uuid in enumerate(self._uuids.pop(column, ())):
            self._places[uuid].discard((row, column))
            if not self._places[uuid]:
                del self._places[uuid]
            self.types.give_back(int(self.type_id[row, column]))
            self.modes.give_back(int(self.mode_id[row, column]))
        self._uuids[column] = tuple(state.gpu.uuid for state in node.states)
        for row, uuid in enumerate(self._uuids[column]):
            self._places.setdefault(uuid, set()).add((row, column))
        words = {
            "type_id": np.array([self.types.take(state.gpu.type) for state in node.states], np.int32),
            "mode_id": np.array([self.modes.take(state.gpu.mode) for state in node.states], np.int32),
        }
        self._put(column, {**values, **words}, clear_rest=True)
        self.sums_total[:, column] = [
            max(int(values[name].sum()), 1) for name in ("slots_total", "cores_total", "memory_total")
        ]
        if node.links:
            self.links[column] = node.links
        else:
            self.links.pop(column, None)
        self.inventory_generation += 1
        self._by_percent.clear()

    def memory_of_percent(self, percent: int) -> Ints:
        """`percent` of each GPU's memory, rounded down to MiB."""
        if percent == 100:
            return self.memory_total
        memory = self._by_percent.get(percent)
        if memory is None:
            memory = self._by_percent[percent] = self.memory_total * percent // 100
        return memory

    def mixed(self) -> Bools:
        """`[columns]`: whether the GPUs of a node differ in the size of their memory."""
        exists, memory = self.exists[:, : self.columns], self.memory_total[:, : self.columns]
        largest = memory.max(0)
        mixed: Bools = (exists & (memory != largest)).any(0)
        return mixed

    def accepts_uuids(self, selectors: requests.Selectors) -> Bools:
        """`[rows, columns]`: which GPUs the pod's wishes by UUID leave."""
        accepted = np.full((self.exists.shape[0], self.columns), not selectors.use_uuids)
        for uuids, value in ((selectors.use_uuids, True), (selectors.nouse_uuids, False)):
            for uuid in uuids:
                for row, column in self._places.get(uuid, ()):
                    accepted[row, column] = value
        return accepted

    def name_rank(self) -> Ints:
        """`[columns]`: the position of each node among all names in order; ties between nodes break by it."""
        if self._name_rank is None or self._name_rank[0] != self.inventory_generation:
            rank = np.empty(self.columns, np.int64)
            rank[np.argsort(np.array(self.names))] = np.arange(self.columns)
            self._name_rank = (self.inventory_generation, rank)
        return self._name_rank[1]

    def columns_of(self, names: Iterable[identifiers.NodeName]) -> Ints:
        """The column of each name, -1 for a name that is not known."""
        return np.array([self.column_of.get(name, -1) for name in names], np.int64)
