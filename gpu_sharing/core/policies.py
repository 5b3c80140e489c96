"""Which of several nodes or GPUs that fit is chosen.

A node policy scores a node by its fullness, or by what is left of it. A GPU policy orders the GPUs of one node:
`ORDERS` has the orders, and `scheduler_extender.fleet.fit.ORDERS` has the same ones on arrays. Scores leave the core in
[0, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_sharing.core import error_codes, errors, gpus, identifiers

_WEIGHT_NAMES = ("slot", "core", "memory")
_HIGHEST_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each amount in a GPU's fullness. At least one weight is above 0."""

    slot: int = 1
    core: int = 1
    memory: int = 1


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """A preference among nodes that fit."""

    name: str
    """As users write it."""
    score: Callable[[Any, Any], Any]
    """The score of a node, 0 to 1, by the fraction of it that is allocated after the placement, 0 to 1, and by how many
    GPUs that leaves free. Arithmetic only, so that it takes floats and arrays alike."""
    by_fragmentation: bool = False
    """Whether what other requests can still use comes first, and the score decides only where that is not known."""


@dataclass(frozen=True, slots=True)
class GpuPolicy:
    """A preference among the GPUs of one node."""

    name: str
    """As users write it."""
    orders: tuple[str, ...]
    """Names from `ORDERS`; the first that distinguishes two GPUs decides."""
    only_idle: bool = False
    """Whether only GPUs without any allocation may be chosen."""
    weights: Weights = Weights()
    """The weights of a GPU's fullness; between nodes all amounts have equal weight."""
    by_links: bool = False
    """Whether links between GPUs come before the orders, where the node publishes them."""
    by_fragmentation: bool = False
    """Whether what other requests can still use comes before the orders, where that is known."""
    gains: Mapping[identifiers.GpuUuid, float] = field(default_factory=dict, hash=False)
    """For one pod on one node: how good each GPU is; it comes before the orders."""

    def key(self, state: gpus.GpuState) -> tuple[float, ...]:
        """Return the sort key of a GPU; the most preferred GPU has the smallest."""
        by_order = tuple(ORDERS[name](state, self.weights) for name in self.orders)
        return (-self.gains.get(state.gpu.uuid, float("-inf")), *by_order) if self.gains else by_order


def fullness(state: gpus.GpuState, counting: Weights = Weights()) -> float:
    """Return how full a GPU is: the allocated fractions of memory, cores and slots, weighted and added up.

    The array engine computes the same sum in the same order, so that both break ties alike.
    """
    gpu, allocated = state.gpu, state.allocated
    return (
        counting.memory * (allocated.memory_mib / max(gpu.memory_mib, 1))
        + counting.core * (allocated.cores_percent / max(gpu.cores_percent, 1))
        + counting.slot * (allocated.slots / max(gpu.slots, 1))
    )


def _by_numa(state: gpus.GpuState, _: Weights) -> float:
    return state.gpu.numa


ORDERS: dict[str, Callable[[gpus.GpuState, Weights], float]] = {
    "binpack": lambda state, counting: -fullness(state, counting),
    "spread": fullness,
    "numa": _by_numa,
}
"""The orders of GPUs: the lowest value comes first. Each is one number; users chain orders with commas to break ties,
and of GPUs that are equal by all of them the lowest index comes first."""

FULLEST_NODE = NodePolicy("binpack", lambda allocated, free_gpus: 1.0 / (1.0 + free_gpus))
"""Best fit: the node with the least left. The fullest by fractions may be a large one with much left."""
EMPTIEST_NODE = NodePolicy("spread", lambda allocated, free_gpus: 1.0 - allocated)
FRAGMENTATION_AWARE = "fragmentation-aware"
LEAST_FRAGMENTING_NODE = NodePolicy(FRAGMENTATION_AWARE, FULLEST_NODE.score, by_fragmentation=True)
NODE_POLICIES = {policy.name: policy for policy in (FULLEST_NODE, EMPTIEST_NODE, LEAST_FRAGMENTING_NODE)}

BINPACK = GpuPolicy("binpack", ("binpack",))
SPREAD = GpuPolicy("spread", ("spread",))

MUTEX = "mutex"
"""The word for `only_idle`."""

TOPOLOGY = "topology-aware"
"""The word for `by_links`."""

GPU_POLICY_NAMES = (*ORDERS, FRAGMENTATION_AWARE, MUTEX, TOPOLOGY)
"""Every word that a GPU policy is written with."""


def node_policy(name: str, where: str) -> NodePolicy:
    """Return the node policy of that name.

    Args:
        name: As the user wrote it.
        where: The setting or annotation it stands in, for the message.

    Raises:
        BadQuantity: The policy does not exist; the message names the existing ones.
    """
    policy = NODE_POLICIES.get(name.strip().lower())
    if policy is None:
        *others, last = NODE_POLICIES
        known = f"{', '.join(others)} or {last}"
        raise errors.BadQuantity(
            error_codes.UNKNOWN_POLICY, f"{where}: {name[:40]!r} is not a policy of this version; write {known}"
        )
    return policy


def gpu_policy(text: str, where: str) -> GpuPolicy:
    """Return the GPU policy of that name, or of several with commas between, such as `binpack,numa`.

    Args:
        text: As the user wrote it. The orders among the names count in the order written; `mutex` and `topology-aware`
            stand anywhere, and so does `fragmentation-aware`, which comes before the orders.
        where: The setting or annotation it stands in, for the message.

    Raises:
        BadQuantity: A policy does not exist, or two of them contradict each other.

    Source: HAMi v2.10, `pkg/scheduler/policy/gpu_policy.go` and `IsValidGPUSchedulerPolicy`.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    for name in names:
        if name not in GPU_POLICY_NAMES:
            raise errors.BadQuantity(
                error_codes.UNKNOWN_POLICY,
                f"{where}: {name[:40]!r} is not a policy of this version; write {', '.join(GPU_POLICY_NAMES[:-1])} or "
                f"{GPU_POLICY_NAMES[-1]}",
            )
    if "binpack" in names and "spread" in names:
        raise errors.BadQuantity(
            error_codes.CONTRADICTORY_REQUEST, f"{where}: binpack and spread exclude each other; write one of them"
        )
    orders = tuple(name for name in names if name in ORDERS) or BINPACK.orders
    return GpuPolicy(
        ",".join(names),
        orders,
        only_idle=MUTEX in names,
        by_links=TOPOLOGY in names,
        by_fragmentation=FRAGMENTATION_AWARE in names,
    )


def weights(text: str, where: str) -> Weights:
    """Read weights such as `slot=1,core=1,memory=3`.

    Args:
        text: As the user wrote it: all three names once, in any order, each with a whole number.
        where: The annotation it stands in, for the message.

    Raises:
        BadQuantity: A name is missing, unknown or repeated, a number is invalid, or all are 0.

    Source: HAMi v2.10, the annotation `hami.io/device-scoring-weights`.
    """
    items = [item.partition("=") for item in text.split(",")]
    by_name = {name.strip(): value.strip() for name, _, value in items}
    numbers = [value for value in by_name.values() if value.isascii() and value.isdigit() and len(value) <= 7]
    values = {name: int(value) for name, value in by_name.items()} if len(numbers) == len(items) else {}
    if set(values) != set(_WEIGHT_NAMES) or not 0 < max(values.values()) <= _HIGHEST_WEIGHT:
        raise errors.BadQuantity(
            error_codes.BAD_SCORING_WEIGHTS,
            f"{where}: {text[:60]!r} are no weights; write slot, core and memory, each with a whole number and not all "
            "of them 0, such as slot=1,core=1,memory=3",
        )
    return Weights(**values)
