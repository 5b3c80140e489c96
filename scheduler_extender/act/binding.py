"""bind: the one write. The record and the node reach the pod in a single Binding, or neither does.

The GPUs are chosen by what is allocated now, and counted (*assumed*) before the Binding is posted, so that two binds
never allocate the same memory. The outcome of a Binding that was not answered is read from the API server before the
GPUs are released or the pod's next bind begins.

Source: k8s.io/kubernetes pkg/registry/core/pod/storage/storage.go, assignPod: annotations and labels of a Binding are
merged into the pod in the same write, `metadata.uid` is a precondition, and the metadata is not validated.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import structlog

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import (
    allocations,
    error_codes,
    errors,
    identifiers,
    placement,
    quotas,
    records,
    rejections,
)
from scheduler_extender.act import leadership, pod_reader, pod_writer
from scheduler_extender.cluster import from_objects, pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts
from scheduler_extender.report.decision_events import DecisionEvents

_MOST_AT_ONCE = 64
_FIND_OUT_BACKOFF_SECONDS = 0.5

log = structlog.get_logger("binding")


@dataclass(frozen=True, slots=True)
class BindCall:
    """One call of kube-scheduler: bind this pod to this node."""

    uid: identifiers.PodUid
    key: str
    """`<namespace>/<name>`."""
    node: identifiers.NodeName


@dataclass(frozen=True, slots=True)
class BindOutcome:
    """What became of a bind."""

    decision: identifiers.DecisionId | None
    """The decision it belongs to; None where none is known."""
    code: error_codes.Code | None = None
    """Why it failed; None where the pod is bound."""
    message: str = ""


class BindRefused(Exception):
    """A bind that was certainly not done.

    Attributes:
        code: Why.
        message: Why, for kube-scheduler.
    """

    def __init__(self, code: error_codes.Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """One bind on its way."""

    pod: PendingPod
    node: identifiers.NodeName
    placed: placement.Placement
    decision: identifiers.DecisionId
    score: float
    unix_seconds: int
    """When it was chosen."""
    pending_since: float
    """Unix seconds from which the pod counts as pending; 0 where that is not known."""
    last_code: error_codes.Code | None
    """Of the pod's last rejection."""


class Binder:
    """Binds pods of one cluster.

    Attributes:
        reader: Reads the pods that are in doubt.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        core: DecisionCore,
        decision_events: DecisionEvents,
        leads: Callable[[], bool],
    ) -> None:
        self._client = client
        self.reader = pod_reader.PodReader(client, core.mirror)
        self._core = core
        self._ledger = core.ledger
        self._decision_events = decision_events
        self._leads = leads
        self._turn = asyncio.Semaphore(_MOST_AT_ONCE)
        self._under_way: dict[identifiers.PodUid, tuple[str, asyncio.Task[None]]] = {}

    @property
    def under_way(self) -> int:
        """Binds whose outcome is not known yet."""
        return len(self._under_way)

    async def bind(self, call: BindCall) -> BindOutcome:
        """Bind a pod. Asked twice for the same pod and node, it is done once."""
        entry = self._core.pending.entry(call.uid)
        decision = entry.decision.id if entry and entry.decision else None
        try:
            running = self._under_way.get(call.uid)
            if running is None:
                task = asyncio.create_task(self._bind(call.uid, call.key, call.node))
                running = self._under_way[call.uid] = (call.node, task)
                task.add_done_callback(lambda done: self._finished(call.uid, done))
            elif running[0] != call.node:
                raise BindRefused(error_codes.BIND_UNKNOWN, f"a bind to node {running[0]} is still under way")
            # A caller that hangs up must not leave a bind half done.
            await asyncio.shield(running[1])
        except BindRefused as refused:
            self._decision_events.bind_failed(
                call.key, call.node, code=refused.code, message=refused.message, decision=decision
            )
            return BindOutcome(decision, refused.code, refused.message)
        return BindOutcome(decision)

    async def _bind(self, uid: identifiers.PodUid, key: str, node: identifiers.NodeName) -> None:
        async with self._turn:
            if not self._leads():
                raise BindRefused(error_codes.NOT_LEADER, "not leader")
            held = self._ledger.pod(uid)
            if held is not None:
                if self._ledger.is_assumed(uid):  # Left by a bind that was interrupted.
                    await self._find_out(uid, key, held.node)
                self._already_bound(held, node)
                return
            pod = self._core.pending.get(uid) or await self._read_through(uid, key, node)
            if pod is None:
                return
            if pod.key != key:
                raise BindRefused(error_codes.POD_GONE, f"the pod of UID {uid} is {pod.key}, not {key}")
            order = self._choose(pod, node)
            body = self._binding(order)
            self._assume(order)
            await self._post(order, body)

    def _finished(self, uid: identifiers.PodUid, done: "asyncio.Task[None]") -> None:
        self._under_way.pop(uid, None)
        if not done.cancelled():
            done.exception()  # Its callers have the answer; it is no defect if none waits any more.

    def _already_bound(self, held: facts.BoundPod, node: identifiers.NodeName) -> None:
        if held.node != node:
            raise BindRefused(error_codes.ALREADY_BOUND_ELSEWHERE, f"the pod is already bound to node {held.node}")
        if held.foreign_slots:
            raise BindRefused(error_codes.ALREADY_BOUND_ELSEWHERE, "the pod was bound by another scheduler")

    async def _read_through(
        self, uid: identifiers.PodUid, key: str, node: identifiers.NodeName
    ) -> pending.AnyPod | None:
        """Return a pod that the mirror has not seen from the API server; None if it is bound as asked already."""
        try:
            pod = await self.reader.read(uid, key)
        except errors.KubernetesError as cause:
            raise BindRefused(error_codes.BIND_FAILED, str(cause)) from cause
        if pod is None:
            raise BindRefused(error_codes.POD_GONE, "the pod was deleted, or has ended")
        if not from_objects.is_ours(pod, self._core.settings.resource_names):
            raise BindRefused(error_codes.BAD_REQUEST, "the pod requests no GPU; managedResources sends it here")
        held = self._ledger.pod(uid)
        if held is not None:
            self._already_bound(held, node)
            return None
        return from_objects.pending_pod(pod, self._core.settings.resource_names)

    def _choose(self, pod: pending.AnyPod, node: identifiers.NodeName) -> _Order:
        if isinstance(pod, pending.UnreadablePod):
            raise BindRefused(pod.invalid.code, pod.invalid.sentence)
        self._ledger.drop_nomination(pod.uid)
        state = self._ledger.view_for(node, pod.uid, pod.priority, nominations=False)
        answer = self._core.placer.place(pod, state)
        if isinstance(answer, rejections.Rejection):
            self._core.pending.refuse(pod, self._ledger.generation)
            if answer.detail:
                raise BindRefused(answer.code, str(answer))
            raise BindRefused(error_codes.NO_LONGER_FITS, f"{node} no longer fits: {answer}")
        # Read now: the watch may show the pod bound, and end its entry, before the Binding is answered.
        entry = self._core.pending.entry(pod.uid) or pending.Entry(pod)
        return _Order(
            pod=pod,
            node=node,
            placed=answer,
            decision=self._core.pending.decision_id(pod.uid),
            score=self._core.placer.score(pod, state, answer),
            unix_seconds=int(time.time()),
            pending_since=entry.pending_since,
            last_code=entry.last_code,
        )

    def _binding(self, order: _Order) -> bytes:
        pod = order.pod
        namespace, _, name = pod.key.partition("/")
        annotations = records.pod_annotations(order.placed.shares, order.node, order.unix_seconds, order.decision)
        if pod.hold:
            annotations[records.HOLD] = ""  # It has what was kept for it; a Binding takes no annotation away.
        unsafe = records.unsafe_metadata(annotations, pod.annotation_bytes)
        if unsafe:
            raise BindRefused(error_codes.UNSAFE_METADATA, unsafe)
        return orjson.dumps({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": pod.uid,
                "annotations": annotations,
                "labels": records.pod_labels(order.node),
            },
            "target": {"apiVersion": "v1", "kind": "Node", "name": order.node},
        })  # fmt: skip

    def _assume(self, order: _Order) -> None:
        pod, shares = order.pod, order.placed.shares
        allocated = allocations.by_gpu(pod.request.kinds, shares)
        amounts = quotas.amounts(pod.request.kinds, shares)
        # Equal to what the watch event of this bind will produce, so that the event changes nothing.
        traits = pod.traits._replace(bound_at=order.unix_seconds)
        self._ledger.assume(
            facts.BoundPod(
                pod.uid,
                pod.key,
                order.node,
                allocated=allocated,
                shares=shares,
                amounts=amounts,
                starting=True,
                traits=traits,
            )
        )

    async def _post(self, order: _Order, body: bytes) -> None:
        uid, path = order.pod.uid, pod_writer.path(order.pod.key)
        timeout = f"timeout={leadership.BINDING_TIMEOUT_SECONDS:g}s"
        try:
            await self._client.post(f"{path}/binding?{timeout}", body, leadership.CALL_SECONDS)
        except errors.Conflict as cause:
            await self._find_out(uid, order.pod.key, order.node, refused=cause)
        except (errors.NotFound, errors.Forbidden, errors.Invalid) as cause:
            self._core.mirror.not_bound(uid)
            code = error_codes.POD_GONE if isinstance(cause, errors.NotFound) else error_codes.BIND_FAILED
            raise BindRefused(code, str(cause)) from cause
        except asyncio.CancelledError:
            # Stopped in the middle: whether it was done shows when the pod is seen next.
            log.warning("bind interrupted", error_code=error_codes.BIND_UNKNOWN, pod=order.pod.key)
            raise
        except Exception as cause:
            # No answer, or an answer that does not show what was done: read the pod until that is known.
            log.warning(
                "binding not answered", error_code=error_codes.BIND_UNKNOWN, pod=order.pod.key, cause=str(cause)
            )
            await self._find_out(uid, order.pod.key, order.node)
        self._core.mirror.confirm(uid)
        if order.pending_since:
            self._core.metrics.pod_bound(time.time() - order.pending_since, order.last_code)
        try:
            self._decision_events.scheduled(
                order.pod, order.node, order.placed, score=order.score, decision=order.decision
            )
        except Exception:
            log.exception("defect", error_code=error_codes.INTERNAL, pod=order.pod.key)

    async def _find_out(
        self, uid: identifiers.PodUid, key: str, node: identifiers.NodeName, refused: errors.Conflict | None = None
    ) -> None:
        """Read the pod until it is known whether its Binding was done; its GPUs stay allocated that long.

        Args:
            uid: The pod.
            key: Its namespace and name.
            node: Where it was to be bound.
            refused: The API server's refusal, if there was one: then no Binding is under way, and one read is enough.

        Raises:
            BindRefused: It was not done.
        """
        if refused is None:
            await asyncio.sleep(leadership.BINDING_TIMEOUT_SECONDS)  # Until then it may still be done.
        backoff = _FIND_OUT_BACKOFF_SECONDS
        while self._ledger.is_assumed(uid):  # The watch may show it first.
            try:
                await self.reader.read(uid, key)
                break
            except errors.KubernetesError as problem:
                log.warning("bind in doubt", error_code=error_codes.BIND_UNKNOWN, pod=key, cause=str(problem))
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, 10.0)
        if self._ledger.is_assumed(uid):
            self._core.mirror.not_bound(uid)
            raise BindRefused(
                error_codes.BIND_FAILED, str(refused) if refused else "the API server did not do the Binding"
            )
        held = self._ledger.pod(uid)
        if held is None:
            raise BindRefused(error_codes.POD_GONE, "the pod was deleted, or has ended")
        self._already_bound(held, node)
