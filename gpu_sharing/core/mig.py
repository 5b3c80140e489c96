"""MIG: the instance that satisfies a request, and its placement on the GPU.

A GPU in MIG mode has memory slices. An instance of a profile such as `2g.20gb` occupies some of them and begins only at
certain ones, so free slices are useless where no profile may begin. Occupancy is one int with 32 bits a slice: it adds
and subtracts like every other allocated quantity, and no number of pods overflows it.

Source: NVIDIA Multi-Instance GPU User Guide, "Supported MIG Profiles" and "GPU Instance Placements".
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MOST_SLICES = 16
"""More than any GPU has."""
_BITS = 32
"""The limit of holders of a slice, above the number of pods of a cluster."""
_DIGIT = (1 << _BITS) - 1


class Slices(NamedTuple):
    """A contiguous range of memory slices."""

    start: int
    size: int


class Profile(NamedTuple):
    """A profile of MIG instances."""

    name: str
    """Such as `2g.20gb`."""
    memory_mib: int
    cores_percent: int
    """Percent of the whole GPU's compute, rounded down."""
    places: tuple[Slices, ...]
    """The placements of its instances."""


class Instance(NamedTuple):
    """An instance that is allocated to a container."""

    profile: str
    start: int
    size: int


def taken(start: int, size: int) -> int:
    """Occupancy of these memory slices as an int, so that occupancies add and subtract: 1 in the digit of each."""
    return sum(1 << (_BITS * slice_) for slice_ in range(start, start + size))


def is_free(slices: int, place: Slices) -> bool:
    """Return whether none of those slices is occupied."""
    return not (slices >> (_BITS * place.start)) & ((1 << (_BITS * place.size)) - 1)


def at_least(occupancy: int, other: int) -> int:
    """Return the larger number of holders of each slice."""
    most = 0
    for shift in range(0, MOST_SLICES * _BITS, _BITS):
        most |= max((occupancy >> shift) & _DIGIT, (other >> shift) & _DIGIT) << shift
    return most


def choose(
    profiles: Sequence[Profile], slices: int, memory_mib: int, memory_percent: int, cores_percent: int
) -> tuple[Profile, Slices] | None:
    """Return the smallest instance that satisfies a request, at the placement that leaves the most options, or None.

    Args:
        profiles: The profiles of the GPU.
        slices: The occupied slices.
        memory_mib: The memory requested; 0 where `memory_percent` is set.
        memory_percent: In percent of the largest profile, because no instance has all the memory of its GPU.
        cores_percent: The compute requested; more than the largest profile has selects that profile.
    """
    most_memory, most_cores = largest(profiles)
    memory = memory_mib or most_memory * memory_percent // 100
    cores = min(cores_percent, most_cores)
    for profile in sorted(profiles, key=_size):
        if profile.memory_mib < memory or profile.cores_percent < cores:
            continue
        free = [place for place in profile.places if is_free(slices, place)]
        if free:
            return profile, max(free, key=lambda place: (_choice_left(profiles, slices + taken(*place)), place.start))
    return None


def largest(profiles: Iterable[Profile], slices: int = 0) -> tuple[int, int]:
    """Return the most memory (MiB) and the most cores (percent) of an instance that still fits."""
    open_ = [one for one in profiles if any(is_free(slices, place) for place in one.places)]
    return max((one.memory_mib for one in open_), default=0), max((one.cores_percent for one in open_), default=0)


def _size(profile: Profile) -> tuple[int, int, int, str]:
    slices = min((place.size for place in profile.places), default=0)
    return slices, profile.memory_mib, profile.cores_percent, profile.name


def _choice_left(profiles: Iterable[Profile], slices: int) -> int:
    """Return a measure of what still fits: the free placements of all profiles, weighted by their size."""
    return sum(place.size for profile in profiles for place in profile.places if is_free(slices, place))
