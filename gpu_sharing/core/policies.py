"""Which of several places that fit is the better one: a table of named policies.

A policy is a preference over *fullness*, at the level of nodes and of GPUs alike. Scores leave the core in [0, 1].
"""

from dataclasses import dataclass

from gpu_sharing.core import error_codes, errors, gpus


@dataclass(frozen=True, slots=True)
class Policy:
    """A preference for fuller or emptier places."""

    name: str
    sign: int
    """1 to prefer the fullest, -1 the emptiest."""

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


def fullness(state: gpus.GpuState) -> float:
    """How full a GPU is, from 0 to 3: the used fractions of memory, cores and slots added up.

    The array engine computes the same sum in the same order, so that both break ties alike.
    """
    gpu, used = state.gpu, state.used
    return (
        used.memory_mib / max(gpu.memory_mib, 1)
        + used.cores_percent / max(gpu.cores_percent, 1)
        + used.slots / max(gpu.slots, 1)
    )
