"""Which of several places that fit is the better one: a table of named policies.

A policy is a preference over *fullness*, at the level of nodes and of GPUs alike. Scores leave the core in [0, 1].
"""

from dataclasses import dataclass

from gpu_sharing.core import error_codes, errors, gpus

_WEIGHT_NAMES = ("slot", "core", "memory")
_HIGHEST_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each thing that a GPU has counts when its fullness is taken. At least one is above 0."""

    slot: int = 1
    core: int = 1
    memory: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """A preference for fuller or emptier places."""

    name: str
    sign: int
    """1 to prefer the fullest, -1 the emptiest."""
    weights: Weights = Weights()
    """What counts among the GPUs of a node; between nodes everything counts alike."""

    def score(self, used_fraction: float) -> float:
        """How good a node is, from 0 to 1, by the fraction of it in use after the placement."""
        return used_fraction if self.sign > 0 else 1.0 - used_fraction


BINPACK = Policy("binpack", 1)
SPREAD = Policy("spread", -1)
POLICIES = {policy.name: policy for policy in (BINPACK, SPREAD)}


def named(name: str, where: str) -> Policy:
    """The policy of that name.

    Args:
        name: As the user wrote it.
        where: The setting or annotation it stands in, for the message.

    Raises:
        BadQuantity: There is no such policy; the message names those there are.
    """
    policy = POLICIES.get(name.strip().lower())
    if policy is None:
        known = " or ".join(POLICIES)
        raise errors.BadQuantity(
            error_codes.UNKNOWN_POLICY, f"{where}: {name[:40]!r} is not a policy of this version; write {known}"
        )
    return policy


def weights(text: str, where: str) -> Weights:
    """Read weights such as `slot=1,core=1,memory=3`.

    Args:
        text: As the user wrote it: all three names once, in any order, each with a whole number.
        where: The annotation it stands in, for the message.

    Raises:
        BadQuantity: A name is missing, unknown or there twice, a number is none, or all are 0.

    Source: HAMi v2.10, the annotation `hami.io/device-scoring-weights`.
    """
    items = [item.partition("=") for item in text.split(",")]
    found = {name.strip(): value.strip() for name, _, value in items}
    numbers = [value for value in found.values() if value.isascii() and value.isdigit() and len(value) <= 7]
    values = {name: int(value) for name, value in found.items()} if len(numbers) == len(items) else {}
    if set(values) != set(_WEIGHT_NAMES) or not 0 < max(values.values()) <= _HIGHEST_WEIGHT:
        raise errors.BadQuantity(
            error_codes.BAD_SCORING_WEIGHTS,
            f"{where}: {text[:60]!r} are no weights; write slot, core and memory, each with a whole number and not all "
            "of them 0, such as slot=1,core=1,memory=3",
        )
    return Weights(**values)


def fullness(state: gpus.GpuState, counting: Weights = Weights()) -> float:
    """How full a GPU is: the used fractions of memory, cores and slots, times their weights, added up.

    The array engine computes the same sum in the same order, so that both break ties alike.
    """
    gpu, used = state.gpu, state.used
    return (
        counting.memory * (used.memory_mib / max(gpu.memory_mib, 1))
        + counting.core * (used.cores_percent / max(gpu.cores_percent, 1))
        + counting.slot * (used.slots / max(gpu.slots, 1))
    )
