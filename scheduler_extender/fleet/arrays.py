"""The cluster's GPUs as arrays: one column a node, one row a GPU.

Shapes are `[rows, columns]` unless said otherwise; rows beyond a node's GPUs do not `exist`. Memory is MiB, cores are
percent of one GPU. Columns are written by `ledger` alone, whole and from the node's own facts, so that nothing drifts.

Rows come first because every question is asked of all nodes at once: each operation then runs over one contiguous
line per GPU.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_sharing.core import gpus, identifiers, placement, policies, requests, topology
from gpu_sharing.core.rejections import Reason

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]

_FIRST_COLUMNS = 64
_FIRST_ROWS = 8


class Arrays:
    """What every node has, and what of it is taken: by bound and assumed pods, and by claims of others."""

    def __init__(self) -> None:
        self.names: list[identifiers.NodeName] = []
        """Name of each column in use; an empty string marks a free column."""
        self.column_of: dict[identifiers.NodeName, int] = {}
        self._free: list[int] = []
        self.inventory_generation = 0
        """Grows whenever a column gets another node or other GPUs."""
        self._by_percent: dict[int, Ints] = {}
        self._name_rank: tuple[int, Ints] | None = None
        self.type_ids: dict[str, int] = {}
        self.mode_ids: dict[str, int] = {}
        self._places: dict[str, set[tuple[int, int]]] = {}
        self._uuids: dict[int, tuple[str, ...]] = {}
        self.links: dict[int, topology.Links] = {}
        """How well the GPUs of a column reach each other, for those columns that say so."""
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
        self.type_id: Codes = grown("type_id", np.int16, whole)
        self.mode_id: Codes = grown("mode_id", np.int16, whole)
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
        """Usable, with a free slot, and nobody has it exclusively."""
        self.empty: Bools = grown("empty", np.bool_, whole)
        """Usable, with a free slot, and nobody is on it."""
        self.fullness: Floats = grown("fullness", np.float64, whole)
        """`policies.fullness` of each GPU, everything counted alike."""
        self.standing: Codes = grown("standing", np.int8, line)
        """`[columns]`: a `Reason` why the node is out of question whatever is free, or NONE."""
        self.free_tokens: Ints = grown("free_tokens", np.int64, line)
        """`[columns]`: device ids of the node that nobody holds."""
        self.sums_used: Ints = grown("sums_used", np.int64, (3, columns))
        """`[3, columns]`: slots, cores and memory taken on the whole node."""
        self.sums_total: Ints = grown("sums_total", np.int64, (3, columns))
        """`[3, columns]`: slots, cores and memory of the whole node."""

    @property
    def columns(self) -> int:
        """Columns in use or freed; arrays are longer."""
        return len(self.names)

    @property
    def live(self) -> int:
        """Nodes known."""
        return len(self.column_of)

    def column(self, name: identifiers.NodeName) -> int:
        """The column of that node, made where there is none."""
        found = self.column_of.get(name)
        if found is not None:
            return found
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
        """Replace one column by a node's state, `used` including what claims of others take."""
        count = len(node.states)
        if count > self.exists.shape[0]:
            self._allocate(count, self.exists.shape[1])
        self.standing[column] = node.standing
        if inventory_changed:
            self._write_inventory(column, node)
        eligible = node.standing is Reason.NONE
        states = node.states
        usable = [
            eligible
            and one.gpu.healthy
            and not one.cordoned
            and not one.usage_unknown
            and one.gpu.mode != gpus.MIG_MODE
            for one in states
        ]
        open_slot = [fit and one.used.slots < one.gpu.slots for fit, one in zip(usable, states, strict=True)]
        values: tuple[tuple[npt.NDArray[Any], list[Any]], ...] = (
            (self.healthy, [one.gpu.healthy for one in states]),
            (self.cordoned, [one.cordoned for one in states]),
            (self.unknown, [one.usage_unknown for one in states]),
            (self.usable, usable),
            (self.memory_used, [one.used.memory_mib for one in states]),
            (self.cores_used, [one.used.cores_percent for one in states]),
            (self.slots_used, [one.used.slots for one in states]),
            (self.exclusive_used, [one.used.exclusive for one in states]),
            (self.memory_free, [one.gpu.memory_mib - one.used.memory_mib for one in states]),
            (self.cores_free, [one.gpu.cores_percent - one.used.cores_percent for one in states]),
            (self.shareable, [slot and not one.used.exclusive for slot, one in zip(open_slot, states, strict=True)]),
            (self.empty, [slot and not one.used.slots for slot, one in zip(open_slot, states, strict=True)]),
            (self.fullness, [policies.fullness(one) for one in states]),
        )
        for field, column_values in values:
            field[:count, column] = column_values
            if inventory_changed:
                field[count:, column] = 0
        self.free_tokens[column] = node.slots_total - node.slots_used
        self.sums_used[:, column] = (
            node.slots_used,
            sum(state.used.cores_percent for state in node.states),
            sum(state.used.memory_mib for state in node.states),
        )

    def _write_inventory(self, column: int, node: placement.NodeState) -> None:
        for row, uuid in enumerate(self._uuids.pop(column, ())):
            self._places[uuid].discard((row, column))
            if not self._places[uuid]:
                del self._places[uuid]
        self._uuids[column] = tuple(state.gpu.uuid for state in node.states)
        for row, uuid in enumerate(self._uuids[column]):
            self._places.setdefault(uuid, set()).add((row, column))
        fields: tuple[npt.NDArray[Any], ...] = (
            self.exists, self.type_id, self.mode_id, self.numa, self.memory_total, self.cores_total, self.slots_total,
        )  # fmt: skip
        for row, state in enumerate(node.states):
            gpu = state.gpu
            type_id = self.type_ids.setdefault(gpu.type, len(self.type_ids))
            mode_id = self.mode_ids.setdefault(gpu.mode, len(self.mode_ids))
            values = (True, type_id, mode_id, gpu.numa, gpu.memory_mib, gpu.cores_percent, gpu.slots)
            for field, value in zip(fields, values, strict=True):
                field[row, column] = value
        for row in range(len(node.states), self.exists.shape[0]):
            for field in fields:
                field[row, column] = 0
        self.sums_total[:, column] = (
            max(node.slots_total, 1),
            max(sum(state.gpu.cores_percent for state in node.states), 1),
            max(sum(state.gpu.memory_mib for state in node.states), 1),
        )
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
        found = self._by_percent.get(percent)
        if found is None:
            found = self._by_percent[percent] = self.memory_total * percent // 100
        return found

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
