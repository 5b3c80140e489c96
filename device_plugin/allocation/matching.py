"""Finds the container that most likely asks, for runtimes without CDI: the answer is verified before the start."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from device_plugin.allocation import checks, marks
from device_plugin.allocation.assignments import Assignments
from device_plugin.allocation.container_edits import ContainerEdits
from device_plugin.allocation.owners import Owners
from device_plugin.delivery import edits
from device_plugin.kubelet.checkpoint import Entry
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node.api_objects import Container, Pod
from device_plugin.node.pods import Pods
from gpu_sharing.core import allocations, identifiers, nvidia, requests

_WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.02

log = structlog.get_logger("allocation")

ContainerKey = tuple[identifiers.PodUid, str]


class Candidate(NamedTuple):
    """A container that may be asking."""

    pod: Pod
    container: str
    shares: tuple[allocations.Share, ...]


class _Answered(NamedTuple):
    container: ContainerKey
    answered_at: float
    """Monotonic seconds."""


class Matcher:
    """Answers Allocate with the edits of a container that has no device ids yet.

    Args:
        pods: The pods of this node.
        owners: What the kubelet has allocated.
        assignments: Resolves what containers get.
        container_edits: Computes their edits.
        forget_seconds: How long an answer counts that does not appear in the checkpoint.
    """

    def __init__(
        self,
        *,
        pods: Pods,
        owners: Owners,
        assignments: Assignments,
        container_edits: ContainerEdits,
        forget_seconds: float,
    ) -> None:
        self._pods = pods
        self._owners = owners
        self._assignments = assignments
        self._edits = container_edits
        self._forget_seconds = forget_seconds
        self._answered: dict[str, _Answered] = {}
        """By allocation, until the checkpoint shows to which container the kubelet gave the answer."""

    async def answer(self, allocation: str, device_id_count: int) -> edits.Edits:
        """Return the edits of the likeliest container; without one, edits that bring no GPU and start nothing."""
        now = time.monotonic()
        for candidate in await self._candidates(device_id_count, now):
            pod, container = candidate.pod, candidate.container
            with contextlib.suppress(StartRefused):
                assignment = self._assignments.resolve(
                    pod, container, device_id_count=device_id_count, allocation=allocation, by_cdi=False
                )
                wanted = self._edits.edits_for(pod, assignment)
                self._answered[allocation] = _Answered((pod.uid, container), now)
                return wanted
        return edits.Edits({nvidia.VISIBLE_DEVICES: nvidia.NO_DEVICES, marks.NAME_VARIABLE: allocation})

    async def _candidates(self, device_id_count: int, now: float) -> list[Candidate]:
        """Return the containers that may be asking, after a wait for the watch of pods if there is none."""
        deadline = now + _WAIT_SECONDS
        while True:
            entries = self._owners.entries_or_none()
            self._forget_known(entries, now)
            owners = candidates(
                self._pods.by_uid.values(),
                entries,
                lambda pod, container: self._assignments.shares(pod, container, device_id_count),
                lambda container: requests.asks_for_gpu((container,), self._assignments.names),
                answered=frozenset(answered.container for answered in self._answered.values()),
            )
            if owners or time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
        if len({candidate.shares for candidate in owners}) > 1:
            names = [f"{candidate.pod.key}/{candidate.container}" for candidate in owners]
            log.warning("several containers may be asking", containers=names)
        return owners

    def _forget_known(self, entries: Iterable[Entry], now: float) -> None:
        known = {entry.environment.get(marks.NAME_VARIABLE) for entry in entries}
        self._answered = {
            allocation: answered
            for allocation, answered in self._answered.items()
            if allocation not in known and now - answered.answered_at < self._forget_seconds
        }


def candidates(
    pods: Iterable[Pod],
    entries: Iterable[Entry],
    shares_of: Callable[[Pod, str], tuple[allocations.Share, ...]],
    asks_for_gpu: Callable[[Container], bool],
    *,
    answered: frozenset[ContainerKey] = frozenset(),
) -> list[Candidate]:
    """Return the containers that may be asking for device ids, likeliest first.

    The kubelet allocates container by container, so of each pod only the first one without device ids can ask.

    Args:
        pods: The pods of this node.
        entries: What the kubelet has allocated.
        shares_of: Returns the shares of a container by its record; raises `StartRefused` where they do not match.
        asks_for_gpu: Returns whether a container requests GPUs.
        answered: Containers that were answered and may not be in the checkpoint yet.
    """
    allocated = {(entry.pod_uid, entry.container) for entry in entries} | answered
    owners = []
    for pod in sorted(pods, key=checks.age):
        without = (
            container.name
            for container in pod.all_containers
            if asks_for_gpu(container) and (pod.uid, container.name) not in allocated
        )
        first = next(without, None)
        if first is not None:
            with contextlib.suppress(StartRefused):
                owners.append(Candidate(pod, first, shares_of(pod, first)))
    return owners
