"""Why no node can ever take a request, however empty its GPUs are: the same sentences for the webhook and explanations.

It is a few passes over the arrays. A request that passes may still fit nowhere, for example because of NUMA nodes or of
containers that run side by side; `core.placement` finds that on one node.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpu_sharing.core import error_codes, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import arrays

_MOST_NAMED = 5
_MOST_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One part of a request that no node serves."""

    code: error_codes.Code
    sentence: str
    """What is requested and what there is, with numbers."""
    advice: str
    """What the pod's owner can write instead."""

    def __str__(self) -> str:
        return f"{self.sentence}; {self.advice}"


def obstacles(fleet: arrays.Arrays, request: requests.PodRequest) -> tuple[Obstacle, ...]:
    """Return what no node serves; empty where a node could take the pod, or where no GPU is known."""
    columns = slice(0, fleet.columns)
    accepted = fleet.exists[:, columns] & (fleet.standing[columns] == Reason.NONE)
    if not accepted.any():
        return ()
    selectors = request.selectors
    type_id, mode_id = fleet.type_id[:, columns], fleet.mode_id[:, columns]
    for obstacle, accepts in (
        (_no_mode, fleet.modes.matching(selectors.accept_mode)[mode_id]),
        (_no_uuid, fleet.accepts_uuids(selectors)),
        (_no_type, fleet.types.matching(selectors.accept_type)[type_id]),
    ):
        left = accepted & accepts
        if not left.any():
            return (obstacle(fleet, accepted, selectors),)
        accepted = left
    return tuple(dict.fromkeys(_sizes(fleet, accepted, request)))


class Cache:
    """The obstacles of recent requests, for as long as the GPUs of the cluster stay the same.

    A list of pending pods needs them for each, and many of those request the same.
    """

    def __init__(self) -> None:
        self._for: tuple[int, bytes] = (-1, b"")
        self._known: dict[requests.PodRequest, tuple[Obstacle, ...]] = {}

    def obstacles(self, fleet: arrays.Arrays, request: requests.PodRequest) -> tuple[Obstacle, ...]:
        """Return `obstacles`, from the cache where it has them."""
        now = fleet.inventory_generation, fleet.standing[: fleet.columns].tobytes()
        if now != self._for or len(self._known) >= _MOST_KEPT:
            self._for, self._known = now, {}
        known = self._known.get(request)
        if known is None:
            known = self._known[request] = obstacles(fleet, request)
        return known


def _sizes(fleet: arrays.Arrays, accepted: arrays.Bools, request: requests.PodRequest) -> Iterator[Obstacle]:
    """Yield what is larger than on any node, among the GPUs that the pod accepts."""
    memory_mib, among = fleet.memory_total[:, : fleet.columns], _among(request.selectors)
    row, column = np.unravel_index(np.where(accepted, memory_mib, -1).argmax(), accepted.shape)
    largest_mib = int(memory_mib[row, column])
    model = fleet.types.words[int(fleet.type_id[row, column])] or "unknown model"
    for ask in request.containers:
        if ask and ask.memory_mib > largest_mib:
            yield Obstacle(
                error_codes.NEVER_FITS,
                f"no GPU here{among} has {ask.memory_mib:,} MiB; the largest has {largest_mib:,} MiB ({model})",
                f"request at most {largest_mib} MiB of each GPU's memory",
            )
            continue
        per_node = (accepted & (memory_mib >= ask.memory_mib)).sum(0) if ask else np.zeros(1, np.int64)
        if ask and ask.gpus > per_node.max():
            most = int(per_node.max())
            name = min(fleet.names[column] for column in np.flatnonzero(per_node == most).tolist())
            enough = f" with {ask.memory_mib:,} MiB" if ask.memory_mib > memory_mib[accepted].min() else ""
            yield Obstacle(
                error_codes.NEVER_FITS,
                f"no node here has {ask.gpus} GPUs{among}{enough} for one container; the most is {most} ({name})",
                f"request at most {most} GPUs in one container",
            )


def _among(selectors: requests.Selectors) -> str:
    chosen = selectors.use_types or selectors.nouse_types or selectors.use_uuids or selectors.nouse_uuids
    return " that the pod accepts" if chosen or selectors.mode else ""


def _no_mode(fleet: arrays.Arrays, among: arrays.Bools, selectors: requests.Selectors) -> Obstacle:
    there = _words(fleet.modes, fleet.mode_id[:, : fleet.columns][among])
    wanted = f"runs in mode {selectors.mode}" if selectors.mode else "is shared by containers"
    return Obstacle(
        error_codes.MODE_MISMATCH,
        f"no GPU here {wanted}; the GPUs here run in {there}",
        f"write another mode in the annotation {requests.MODE}" + (", or remove it" if selectors.mode else ""),
    )


def _no_uuid(fleet: arrays.Arrays, among: arrays.Bools, selectors: requests.Selectors) -> Obstacle:
    del fleet, among
    if not selectors.use_uuids:
        sentence = f"the annotation {requests.NOUSE_UUID} excludes every GPU"
        return Obstacle(error_codes.UUID_MISMATCH, sentence, "remove UUIDs from it")
    named = ", ".join(uuid[:80] for uuid in selectors.use_uuids[:_MOST_NAMED])
    return Obstacle(
        error_codes.UUID_MISMATCH,
        f"no GPU here has the UUID {named}",
        f"correct the annotation {requests.USE_UUID}, or remove it",
    )


def _no_type(fleet: arrays.Arrays, among: arrays.Bools, selectors: requests.Selectors) -> Obstacle:
    there = _words(fleet.types, fleet.type_id[:, : fleet.columns][among])
    if not selectors.use_types:
        sentence = f"the annotation {requests.NOUSE_TYPE} excludes every GPU; the GPUs here are {there}"
        return Obstacle(error_codes.TYPE_MISMATCH, sentence, "remove types from it")
    wanted = " or ".join(text.upper()[:80] for text in selectors.use_types[:_MOST_NAMED])
    return Obstacle(
        error_codes.TYPE_MISMATCH,
        f"no GPU here is of type {wanted}; the GPUs here are {there}",
        f"correct the annotation {requests.USE_TYPE}, or remove it",
    )


def _words(interned: arrays.Interned, numbers: arrays.Ids) -> str:
    """Return the words of some numbers, each once, in order."""
    words = sorted({interned.words[number] or "unknown" for number in np.unique(numbers).tolist()})
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return ", ".join(words[:_MOST_NAMED]) + more
