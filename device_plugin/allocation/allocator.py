"""The life of an allocation: named at Allocate, bound to its container in the background, confirmed before the start.

The kubelet does not say who asks, so Allocate hands out a name that was never used before, a CDI device, and returns.
Right after, the owner is read from the kubelet's checkpoint and the specification is written. PreStartContainer is the
barrier: it confirms the specification against the record of the very container, or fails with a text that the kubelet
shows and retries. Where the runtime does not know CDI, Allocate matches by the records and PreStartContainer verifies.
"""

import asyncio
import contextlib
import hashlib
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from device_plugin.allocation import checks
from device_plugin.delivery import cdi_store, edits, methods
from device_plugin.driver import gpu_source
from device_plugin.isolation.backend import Assignment, CannotIsolate
from device_plugin.kubelet import checkpoint, podresources
from device_plugin.node import api_objects, local_node, pods
from gpu_sharing.core import error_codes, errors, health, identifiers, records, requests, variables
from gpu_sharing.core.allocations import Share

_CACHE_SECONDS = 0.1
"""A runtime follows its directory by events and does not look again on a miss: what is younger is waited for."""
_BARRIER_SECONDS = 10.0
"""How long PreStartContainer waits for watches and the kubelet to catch up; the kubelet gives it 30 s."""
_EARLY_SECONDS = 20.0
_MATCH_SECONDS = 2.0
_POLL_SECONDS = 0.02
NAME_VARIABLE = "HAMI_ALLOCATION"
"""Tells a running container's allocation; its absence there shows a runtime that ignores CDI."""

MARK_FOLDER = "/run/hami.io"
"""In a container that was bound by CDI, the host's `/dev/null` is mounted here by the allocation's name: a mount shows
in the process's mountinfo, which may be read without the right to trace it."""
_IDENTITY_SECONDS = 20.0
"""How long Allocate waits for the node to be read."""

_LIMIT = re.compile(rf"{methods.GPUS}|CUDA_DEVICE_MEMORY_LIMIT_\d+|CUDA_DEVICE_SM_LIMIT")

log = structlog.get_logger("allocation")


@dataclass(frozen=True, slots=True)
class Container:
    """One container and its slice."""

    name: str
    shares: tuple[Share, ...]
    mode: str
    """How it is isolated."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What may start now."""

    pod: api_objects.Pod
    containers: tuple[Container, ...]
    """One; or an init container and the app container that reuses its ids, as either may be starting."""
    new: tuple[Container, ...]
    """Those that this process confirms for the first time."""


class Allocator:
    """Answers the kubelet's two questions: what does a container get, and may it start now.

    Attributes:
        checkpoint_file: Where the kubelet writes what it has given out.
    """

    def __init__(
        self,
        node: local_node.LocalNode,
        here: pods.Pods,
        kubelet_dir: pathlib.Path,
        store: cdi_store.CdiStore,
        resources: podresources.PodResources,
        names: requests.ResourceNames,
        synced: Callable[[], bool],
        forget_seconds: float,
    ) -> None:
        """Join what it needs.

        Args:
            node: What is known of the node.
            here: The pods of the node.
            kubelet_dir: The kubelet's directory.
            store: Where specifications are written.
            resources: The kubelet's podresources.
            names: Under which names containers ask.
            synced: Whether the pods are current.
            forget_seconds: What the checkpoint does not have is deleted once it is older: it may not be there *yet*.
        """
        self._node = node
        self._pods = here
        self.checkpoint_file = kubelet_dir / checkpoint.FILE
        self._store = store
        self._resources = resources
        self._names = names
        self._synced = synced
        self._forget_seconds = forget_seconds
        self._confirmed: set[tuple[identifiers.PodUid, str]] = set()
        self._bound_late: set[tuple[identifiers.PodUid, str]] = set()
        self._checked: dict[bytes, checkpoint.Entry] = {}
        self._read: tuple[tuple[int, int, int], tuple[checkpoint.Entry, ...]] | None = None
        self._matched: dict[str, tuple[tuple[identifiers.PodUid, str], float]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def allocate(self, tokens: frozenset[str]) -> edits.Edits | str:
        """What a container gets that was given these ids: a CDI name, or edits where it is matched."""
        device = f"{hashlib.sha256(' '.join(sorted(tokens)).encode()).hexdigest()[:12]}-{secrets.token_hex(8)}"
        if await self._late():
            task = asyncio.create_task(self._write_early(device))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return f"{cdi_store.KIND}={device}"
        return await self._match(device, len(tokens))

    async def _late(self) -> bool:
        """Whether a container that asks now is to be bound late, by CDI.

        While the node has not been read since the start, what the kubelet remembers of earlier answers says it.

        Raises:
            Doubt: Nothing says it. The kubelet then fails the pod for good, and its controller makes another one.
        """
        if self._node.identity_known.is_set():
            return self._node.late
        earlier = {_device_name(entry) is not None for entry in self._entries_or_none()}
        if len(earlier) == 1:
            return earlier.pop()
        try:
            await asyncio.wait_for(self._node.identity_known.wait(), _IDENTITY_SECONDS)
        except TimeoutError as cause:
            raise checks.StartRefused(
                error_codes.PLUGIN_NODE_UNREAD, f"{self._node.name} was not read within {_IDENTITY_SECONDS:g} s"
            ) from cause
        return self._node.late

    async def confirm(self, tokens: frozenset[str]) -> Confirmed:
        """Make sure that the container with these ids gets its own record's edits when it starts now.

        Raises:
            Doubt: It does not, so it must not start.
        """
        deadline = time.monotonic() + _BARRIER_SECONDS
        while True:
            try:
                return await self._confirm(tokens)
            except checks.StartRefused as doubt:
                if not doubt.retryable or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)

    async def _confirm(self, tokens: frozenset[str]) -> Confirmed:
        entries = checks.entries_with(self.entries(), tokens)
        pod = self._pods.by_uid.get(entries[0].pod_uid)
        if pod is None:
            return self._trust_disk(entries)
        await self._cross_check(pod, entries, tokens)
        wait = 0.0
        for entry in entries:
            await self._prepare(pod, entry)
            wait = max(wait, self._settle(pod, entry))
        if wait:
            await asyncio.sleep(wait)
        containers = []
        for entry in entries:
            shares = checks.recorded_shares(pod, entry.container, len(tokens), self._node.name, self._names)
            containers.append(Container(entry.container, shares, self._isolates(pod, entry.container, shares)))
        new = tuple(one for one in containers if (pod.uid, one.name) not in self._confirmed)
        self._confirmed |= {(pod.uid, one.name) for one in containers}
        self._bound_late |= {(pod.uid, entry.container) for entry in entries if _device_name(entry) is not None}
        return Confirmed(pod, tuple(containers), new)

    async def _cross_check(
        self, pod: api_objects.Pod, entries: Sequence[checkpoint.Entry], tokens: frozenset[str]
    ) -> None:
        """Compare with podresources, once: an answer is unique and never gets another owner."""
        if all(self._checked.get(entry.answer) == entry for entry in entries):
            return
        try:
            listed = await self._resources.listed()
        except podresources.Unanswered as cause:
            raise checks.StartRefused(error_codes.ALLOC_OWNER_UNKNOWN, str(cause), retryable=True) from cause
        checks.compare_with_podresources(pod, entries, tokens, listed)
        for entry in entries:
            if _device_name(entry) is not None:
                self._checked[entry.answer] = entry

    def _trust_disk(self, entries: Sequence[checkpoint.Entry]) -> Confirmed:
        """The pod is not known. If the API server cannot be asked, what an earlier confirmation wrote holds."""
        uid = entries[0].pod_uid
        if self._synced():
            raise checks.StartRefused(
                error_codes.ALLOC_OWNER_UNKNOWN,
                f"the API server shows no pod with UID {uid} on this node",
                retryable=True,
            )
        for entry in entries:
            device = _device_name(entry)
            if device is None or not self._store.exists(device, uid):
                raise checks.StartRefused(
                    error_codes.ALLOC_OWNER_UNKNOWN,
                    "the API server is away and nothing was written before",
                    retryable=True,
                )
        pod = api_objects.Pod()
        pod.metadata.uid = uid
        return Confirmed(pod, (), ())

    async def _prepare(self, pod: api_objects.Pod, entry: checkpoint.Entry) -> None:
        """Make on the node what a container needs there, such as a MIG instance."""
        shares = checks.recorded_shares(pod, entry.container, len(entry.device_ids), self._node.name, self._names)
        devices = checks.recorded_devices(pod, shares, self._node.devices)
        try:
            await self._node.backends[self._mode(shares)].prepare(
                self._granted(pod, entry.container, "", shares, devices, late=_device_name(entry) is not None)
            )
        except CannotIsolate as cause:
            raise checks.StartRefused(error_codes.ALLOC_ISOLATION, f"{pod.key}: {cause}") from cause

    def _settle(self, pod: api_objects.Pod, entry: checkpoint.Entry) -> float:
        """Write or verify what one container gets. Returns the seconds that the runtime needs to see it."""
        device = _device_name(entry)
        wanted = self._wanted(
            pod, entry.container, len(entry.device_ids), device or entry.environment.get(NAME_VARIABLE, ""),
            late=device is not None,
        )  # fmt: skip
        if device is None:
            self._verify(pod, entry, wanted)
            self._claim(pod, entry)
            return 0.0
        try:
            if self._store.write(device, pod.uid, wanted, self._node.host.specs.version):
                return _CACHE_SECONDS
        except cdi_store.NotWritten as cause:
            raise checks.StartRefused(error_codes.ALLOC_SPEC_NOT_WRITTEN, str(cause)) from cause
        # A file can come from the future: the wall clock may have been set back since.
        return min(max(_CACHE_SECONDS - self._store.age_seconds(device, pod.uid), 0.0), _CACHE_SECONDS)

    def _verify(self, pod: api_objects.Pod, entry: checkpoint.Entry, wanted: edits.Edits) -> None:
        """What was answered at Allocate cannot be changed any more: it must be what this container is to get.

        An answer without our mark is that of HAMi's plugin, which served the node before: its limits have to be right.
        """
        own = _overridden(pod, entry.container, wanted)
        if own:
            raise checks.StartRefused(
                error_codes.ALLOC_OWN_VARIABLES,
                f"{pod.key}: container {entry.container} sets {', '.join(own)} in its env",
            )
        answered = entry.environment
        ours = NAME_VARIABLE in answered
        if not ours:
            answered = {**answered, methods.GPUS: answered.get(methods.VISIBLE, "")}
        for name, value in wanted.environment.items():
            if (ours or _LIMIT.fullmatch(name)) and answered.get(name) != value:
                raise checks.StartRefused(
                    error_codes.ALLOC_WRONG_MATCH,
                    f"{pod.key}: {entry.container} was answered {name}={answered.get(name)}, its record says {value}",
                )

    def _claim(self, pod: api_objects.Pod, entry: checkpoint.Entry) -> None:
        """Say whose the folder of a matched answer is: it was made before that was certain."""
        shares = checks.recorded_shares(pod, entry.container, len(entry.device_ids), self._node.name, self._names)
        folder = entry.environment.get(NAME_VARIABLE, "")
        self._node.backends[self._mode(shares)].claim(folder, f"{pod.uid}_{entry.container}")

    def _wanted(self, pod: api_objects.Pod, container: str, count: int, allocation: str, *, late: bool) -> edits.Edits:
        """The edits by a container's own record, for a CDI specification (late) or for the answer itself.

        Raises:
            Doubt: There are none, or it must not start.
        """
        shares = checks.recorded_shares(pod, container, count, self._node.name, self._names)
        devices = checks.recorded_devices(pod, shares, self._node.devices)
        for share in shares:
            state = self._node.states.get(share.uuid, health.Health())
            if state.state in (health.State.UNHEALTHY, health.State.RECOVERING):
                raise checks.StartRefused(error_codes.ALLOC_GPU_UNHEALTHY, f"{share.uuid}: {state.cause}")
        checks.refuse_oversubscription(pod, shares, self._pods.holders, self._node.inventory)
        mode = self._mode(shares)
        wished = requests.mode(pod.annotations)
        if wished and not requests.Selectors(mode=wished).accept_mode(mode):
            raise checks.StartRefused(
                error_codes.ALLOC_ISOLATION, f"{pod.key} asks for {wished}, its GPU is shared by {mode}"
            )
        backend = self._node.backends[mode]
        assignment = self._granted(pod, container, allocation, shares, devices, late=late)
        try:
            kept_apart = backend.edits(assignment, self._neighbours(pod, container, shares))
        except CannotIsolate as cause:
            raise checks.StartRefused(error_codes.ALLOC_ISOLATION, f"{pod.key}: {cause}") from cause
        delivered = self._delivered(pod, devices, backend.visible(assignment), late=late)
        return edits.merged([delivered, kept_apart, _mark(allocation, late=late)])

    def _delivered(
        self, pod: api_objects.Pod, devices: Sequence[gpu_source.Device], visible: Sequence[str], *, late: bool
    ) -> edits.Edits:
        """What brings the GPUs into a container of a pod.

        Raises:
            Doubt: One of them cannot be brought.
        """
        has_class = bool(pod.spec.runtime_class_name)
        by_name = {device.uuid: device for device in devices}
        by_instance = {instance.uuid: device for device in devices for instance in device.migs}
        named = [by_instance.get(name) or by_name[identifiers.GpuUuid(name)] for name in visible]
        ways = [self._node.way(device, late=late, has_class=has_class) for device in named]
        for device, way in zip(named, ways, strict=True):
            if not way.name:
                raise checks.StartRefused(error_codes.ALLOC_DELIVERY, f"{device.uuid}: {way.code}: {way.refusal}")
            if way.name in methods.BY_RUNTIME and not has_class and self._node.refuses_without_class:
                raise checks.StartRefused(error_codes.ALLOC_RUNTIME_CLASS, f"{pod.key} has no runtimeClassName")
        try:
            return methods.edits_for(list(zip(named, visible, ways, strict=True)), self._node.host)
        except methods.Undeliverable as cause:
            raise checks.StartRefused(error_codes.ALLOC_DELIVERY, f"{pod.key}: {cause}") from cause

    def _granted(
        self,
        pod: api_objects.Pod,
        container: str,
        allocation: str,
        shares: tuple[Share, ...],
        devices: tuple[gpu_source.Device, ...],
        *,
        late: bool,
    ) -> Assignment:
        found = pod.container(container)
        assert found is not None
        position, spec = found
        return Assignment(
            allocation=allocation,
            # Without CDI another container of the same slice may be the owner, so the folder bears no pod's name.
            folder=f"{pod.uid}_{container}" if late else allocation,
            shares=shares,
            devices=devices,
            environment={variable.name: variable.value for variable in spec.env or ()},
            user=pod.user_of(spec),
            migs=records.mig_shares(pod.annotations.get(records.MIG_ALLOCATIONS, ""), position),
        )

    def _neighbours(self, pod: api_objects.Pod, container: str, shares: Sequence[Share]) -> Iterator[Assignment]:
        """The other containers on the same GPUs, by their records."""
        wanted = {share.uuid for share in shares}
        others = {other.uid: other for uuid in wanted for other, _ in self._pods.holders(uuid)}
        for other in others.values():
            with contextlib.suppress(errors.CorruptRecord):
                for one, theirs in zip(other.all_containers, other.shares(self._names) or (), strict=False):
                    if (other.uid, one.name) != (pod.uid, container) and wanted & {share.uuid for share in theirs}:
                        devices = tuple(
                            self._node.devices[one.uuid] for one in theirs if one.uuid in self._node.devices
                        )
                        yield self._granted(other, one.name, "", theirs, devices, late=True)

    def _isolates(self, pod: api_objects.Pod, container: str, shares: tuple[Share, ...]) -> str:
        """What isolates a container, for its event; empty for one without GPUs."""
        mode = self._mode(shares)
        if not mode:
            return ""
        return self._node.backends[mode].isolates(self._granted(pod, container, "", shares, (), late=True))

    def granted_on(self, uuid: identifiers.GpuUuid) -> Iterator[Assignment]:
        """What containers on a GPU have by their records."""
        for pod, _ in self._pods.holders(uuid):
            with contextlib.suppress(errors.CorruptRecord):
                for one, shares in zip(pod.all_containers, pod.shares(self._names) or (), strict=False):
                    if any(share.uuid == uuid for share in shares):
                        yield self._granted(pod, one.name, "", shares, (), late=True)

    def _mode(self, shares: Iterable[Share]) -> str:
        return next((self._node.inventory[share.uuid].mode for share in shares), "")

    async def _write_early(self, device: str) -> None:
        """Write the specification as soon as the kubelet's checkpoint says whose it is; PreStartContainer confirms."""
        deadline = time.monotonic() + _EARLY_SECONDS
        name = f"{cdi_store.KIND}={device}"
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            with contextlib.suppress(checks.StartRefused):
                for entry in self.entries():
                    pod = self._pods.by_uid.get(entry.pod_uid)
                    if name in entry.cdi_names and pod is not None:
                        await self._prepare(pod, entry)
                        self._settle(pod, entry)
                        await self._cross_check(pod, (entry,), entry.device_ids)
                        return

    async def _match(self, device: str, count: int) -> edits.Edits:
        """Without CDI: answer the record of the container that most likely asks."""
        deadline = time.monotonic() + _MATCH_SECONDS
        now = time.monotonic()
        while True:
            entries = self._entries_or_none()
            # What was answered is taken until the checkpoint says to whom the kubelet gave the answer.
            seen = {entry.environment.get(NAME_VARIABLE) for entry in entries}
            self._matched = {
                name: (key, at)
                for name, (key, at) in self._matched.items()
                if name not in seen and now - at < self._forget_seconds
            }
            taken = frozenset(key for key, _ in self._matched.values())
            everybody = self._pods.by_uid.values()
            found = checks.candidates(everybody, entries, count, self._node.name, self._names, taken=taken)
            if found or time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
        if len({shares for _, _, shares in found}) > 1:
            log.warning("several containers may be asking", containers=[f"{pod.key}/{name}" for pod, name, _ in found])
        for pod, container, _ in found:
            with contextlib.suppress(checks.StartRefused):
                wanted = self._wanted(pod, container, count, device, late=False)
                self._matched[device] = ((pod.uid, container), now)
                return wanted
        return edits.Edits({methods.VISIBLE: methods.VOID, NAME_VARIABLE: device})

    def entries(self) -> tuple[checkpoint.Entry, ...]:
        """What the kubelet has given out.

        Raises:
            Doubt: Its checkpoint cannot be read.
        """
        try:
            status = self.checkpoint_file.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read is None or self._read[0] != version:
                # Read after it was looked at: if it is replaced in between, the next look finds another version.
                self._read = version, checkpoint.read(self.checkpoint_file.read_bytes(), self._names.count)
        except FileNotFoundError:
            return ()
        except (OSError, errors.CorruptRecord) as cause:
            raise checks.StartRefused(error_codes.PLUGIN_CHECKPOINT_UNREADABLE, str(cause), retryable=True) from cause
        return self._read[1]

    def _entries_or_none(self) -> tuple[checkpoint.Entry, ...]:
        try:
            return self.entries()
        except checks.StartRefused:
            return ()

    def is_late(self, uid: identifiers.PodUid, container: str) -> bool:
        """Whether this process confirmed a container that was bound by CDI."""
        return (uid, container) in self._bound_late

    def pod_of(self, tokens: frozenset[str]) -> api_objects.Pod | None:
        """The pod that was given just these ids, as far as the checkpoint tells."""
        found = [entry.pod_uid for entry in self._entries_or_none() if entry.device_ids == tokens]
        return self._pods.by_uid.get(found[0]) if len(set(found)) == 1 else None

    def held_tokens(self) -> set[str]:
        """The tokens that containers hold."""
        return {token for entry in self._entries_or_none() for token in entry.device_ids}

    def held(self) -> dict[str, identifiers.GpuUuid | None]:
        """The tokens that containers hold, each with its GPU by the record; None where that is not known."""
        found: dict[str, identifiers.GpuUuid | None] = {}
        for entry in self._entries_or_none():
            pod = self._pods.by_uid.get(entry.pod_uid)
            shares: tuple[Share, ...] = ()
            if pod is not None:
                with contextlib.suppress(checks.StartRefused):
                    shares = checks.recorded_shares(
                        pod, entry.container, len(entry.device_ids), self._node.name, self._names
                    )
            for position, token in enumerate(sorted(entry.device_ids)):
                # App containers come after the init containers whose ids they reuse, and theirs is what lasts.
                found[token] = shares[position].uuid if shares else found.get(token)
        return found

    def rebuild(self) -> int:
        """Write the specifications of everything that the kubelet has given out, such as after a reboot.

        Returns:
            How many there are.
        """
        written = 0
        for entry in self._entries_or_none():
            pod = self._pods.by_uid.get(entry.pod_uid)
            if pod is None or _device_name(entry) is None:
                continue
            try:
                self._settle(pod, entry)
                written += 1
            except checks.StartRefused as doubt:
                log.warning(
                    "not rebuilt", error_code=doubt.code, pod=pod.key, container=entry.container, cause=str(doubt)
                )
        return written

    def collect(self) -> int:
        """Delete what was made for allocations that the kubelet has forgotten.

        Returns:
            How many things were deleted.

        Raises:
            Doubt: The checkpoint cannot be read, so nothing is deleted.
        """
        if not self.checkpoint_file.exists():
            return 0  # A kubelet that never gave anything out, or one that we cannot see.
        entries = self.entries()
        names = {name for entry in entries for name in entry.cdi_names}
        folders = {f"{entry.pod_uid}_{entry.container}" for entry in entries}
        folders |= {entry.environment.get(NAME_VARIABLE, "") for entry in entries}
        deleted = 0
        for written in self._store.all():
            old = self._store.age_seconds(written.device, written.pod_uid) > self._forget_seconds
            if written.name not in names and old:
                self._store.delete(written)
                deleted += 1
        for backend in self._node.backends.values():
            for folder in backend.folders(self._forget_seconds):
                if folder not in folders:
                    backend.forget(folder)
                    deleted += 1
        alive = {(entry.pod_uid, entry.container) for entry in entries}
        self._confirmed &= alive
        self._bound_late &= alive
        answers = {entry.answer for entry in entries}
        self._checked = {answer: entry for answer, entry in self._checked.items() if answer in answers}
        return deleted


def _device_name(entry: checkpoint.Entry) -> str | None:
    """Our CDI device in an answer."""
    for name in entry.cdi_names:
        kind, equals, device = name.partition("=")
        if kind == cdi_store.KIND and equals:
            return device
    return None


def _mark(allocation: str, *, late: bool) -> edits.Edits:
    """What tells a running container's allocation."""
    if not allocation:
        return edits.NOTHING
    mounts = (edits.Mount("/dev/null", f"{MARK_FOLDER}/{allocation}"),) if late else ()
    return edits.Edits({NAME_VARIABLE: allocation}, mounts)


def _overridden(pod: api_objects.Pod, container: str, wanted: edits.Edits) -> list[str]:
    """The variables that the container's own env sets to something else than it is to get; the pod's come last."""
    found = pod.container(container)
    if found is None:
        return []
    own = {one.name: one.value for one in found[1].env or ()}
    different = [name for name, value in own.items() if wanted.environment.get(name, value) != value]
    return sorted({*different, *variables.given(own.keys() - wanted.environment.keys())})
