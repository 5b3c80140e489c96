"""bind: the one write. The record and the node reach the pod in a single Binding, or neither does.

The GPUs are chosen against what is held now and counted (*assumed*) before the Binding is posted, so that two binds
can never take one place. What became of a Binding that was not answered is found out before the pod's place is given
away or its next bind is begun.

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
    requests,
)
from scheduler_extender.act import leadership, pod_reader, pod_writer, waking
from scheduler_extender.cluster import from_objects
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import verbs
from scheduler_extender.decide.placer import Placer
from scheduler_extender.fleet import facts
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import wire
from scheduler_extender.settings import Settings

_MOST_AT_ONCE = 64
_FIND_OUT_BACKOFF_SECONDS = 0.5

log = structlog.get_logger("binding")


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


@dataclass(frozen=True, slots=True)
class _Order:
    """One bind on its way."""

    pod: from_objects.PendingPod
    node: identifiers.NodeName
    placed: placement.Placement
    decision: identifiers.DecisionId
    score: float
    unix_seconds: int
    """When it was chosen."""


class Binder:
    """Binds pods of one cluster.

    Attributes:
        reader: Reads the pods about which there is doubt.
    """

    def __init__(
        self,
        client: kubernetes.Client,
        mirror: Mirror,
        placer: Placer,
        choices: verbs.Verbs,
        refusals: waking.Refusals,
        decision_events: DecisionEvents,
        settings: Settings,
        metrics: Metrics,
        leads: Callable[[], bool],
    ) -> None:
        self._client = client
        self.reader = pod_reader.PodReader(client, mirror)
        self._mirror = mirror
        self._ledger = mirror.ledger
        self._placer = placer
        self._choices = choices
        self._refusals = refusals
        self._decision_events = decision_events
        self._settings = settings
        self._metrics = metrics
        self._leads = leads
        self._turn = asyncio.Semaphore(_MOST_AT_ONCE)
        self._under_way: dict[identifiers.PodUid, tuple[str, asyncio.Task[None]]] = {}

    @property
    def under_way(self) -> int:
        """Binds whose outcome is not known yet."""
        return len(self._under_way)

    async def bind(self, args: wire.BindArgs) -> str:
        """Bind a pod. Asked twice for the same pod and node, it is done once.

        Returns:
            An empty string, or why not.
        """
        uid = identifiers.PodUid(args.pod_uid)
        key = f"{args.pod_namespace}/{args.pod_name}"
        try:
            running = self._under_way.get(uid)
            if running is None:
                task = asyncio.create_task(self._bind(uid, key, identifiers.NodeName(args.node)))
                running = self._under_way[uid] = (args.node, task)
                task.add_done_callback(lambda done: self._finished(uid, done))
            elif running[0] != args.node:
                raise BindRefused(error_codes.BIND_UNKNOWN, f"a bind to node {running[0]} is still under way")
            # A caller that hangs up must not leave a bind half done.
            await asyncio.shield(running[1])
        except BindRefused as refused:
            self._metrics.bind_failed(refused.code)
            decision = self._choices.decision(uid)
            self._decision_events.bind_failed(
                key, args.node, refused.code, refused.message, decision.id if decision else None
            )
            return f"{refused.code}: {refused.message}"
        except Exception:
            self._metrics.bind_failed(error_codes.INTERNAL)
            raise
        self._metrics.bind_success.inc()
        return ""

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
            pod = self._mirror.waiting.get(uid) or await self._read_through(uid, key, node)
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
            done.exception()  # Whoever asked has been told; if nobody waits any more, that is no defect.

    def _already_bound(self, held: facts.BoundPod, node: identifiers.NodeName) -> None:
        if held.node != node:
            raise BindRefused(error_codes.ALREADY_BOUND_ELSEWHERE, f"the pod is already bound to node {held.node}")
        if held.foreign_slots:
            raise BindRefused(error_codes.ALREADY_BOUND_ELSEWHERE, "the pod was bound by another scheduler")

    async def _read_through(
        self, uid: identifiers.PodUid, key: str, node: identifiers.NodeName
    ) -> from_objects.PendingPod | None:
        """The pod from the API server, where the mirror has not seen it yet; None if it is bound as asked already."""
        try:
            pod = await self.reader.read(uid, key)
        except errors.KubernetesError as cause:
            raise BindRefused(error_codes.BIND_FAILED, str(cause)) from cause
        if pod is None:
            raise BindRefused(error_codes.POD_GONE, "the pod was deleted, or has ended")
        if not from_objects.is_ours(pod, self._settings.resource_names):
            raise BindRefused(error_codes.BAD_REQUEST, "the pod asks for no GPU; managedResources sends it here")
        held = self._ledger.pod(uid)
        if held is not None:
            self._already_bound(held, node)
            return None
        return from_objects.pending_pod(pod, self._settings.resource_names)

    def _choose(self, pod: from_objects.PendingPod, node: identifiers.NodeName) -> _Order:
        if isinstance(pod.request, requests.InvalidRequest):
            raise BindRefused(pod.request.code, pod.request.sentence)
        self._ledger.drop_nomination(pod.uid)
        state = self._ledger.view_for(node, pod.uid, pod.priority, nominations=False)
        answer = self._placer.place(pod, state)
        if isinstance(answer, rejections.Rejection):
            self._refusals.add(pod, self._ledger.generation)
            if answer.detail:
                raise BindRefused(answer.code, str(answer))
            raise BindRefused(error_codes.NO_LONGER_FITS, f"{node} no longer fits: {answer}")
        score = self._choices.score(pod, state, answer)
        return _Order(pod, node, answer, self._choices.new_decision_id(pod.uid), score, int(time.time()))

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
        assert isinstance(pod.request, requests.PodRequest)
        allocated = allocations.by_gpu(pod.request.kinds, shares)
        amounts = quotas.amounts(pod.request.kinds, shares)
        # Just what the watch will say, so that its word of this bind is no news.
        plain = pod.traits._replace(bound_at=order.unix_seconds)
        self._ledger.assume(
            facts.BoundPod(pod.uid, pod.key, order.node, allocated, shares, amounts, starting=True, traits=plain)
        )

    async def _post(self, order: _Order, body: bytes) -> None:
        uid, path = order.pod.uid, pod_writer.path(order.pod.key)
        timeout = f"timeout={leadership.BINDING_TIMEOUT_SECONDS:g}s"
        try:
            await self._client.post(f"{path}/binding?{timeout}", body, pod_reader.ANSWER_WITHIN_SECONDS)
        except errors.Conflict as cause:
            await self._find_out(uid, order.pod.key, order.node, refused=cause)
        except (errors.NotFound, errors.Forbidden, errors.Invalid) as cause:
            self._mirror.not_bound(uid)
            code = error_codes.POD_GONE if isinstance(cause, errors.NotFound) else error_codes.BIND_FAILED
            raise BindRefused(code, str(cause)) from cause
        except asyncio.CancelledError:
            # Stopped in the middle: whether it was done shows when the pod is seen next.
            log.warning("bind interrupted", error_code=error_codes.BIND_UNKNOWN, pod=order.pod.key)
            raise
        except Exception as cause:
            # No answer, or none that says what was done: an assumption in doubt is looked up, and ends.
            log.warning(
                "binding not answered", error_code=error_codes.BIND_UNKNOWN, pod=order.pod.key, cause=str(cause)
            )
            await self._find_out(uid, order.pod.key, order.node)
        self._mirror.confirm(uid)
        self._refusals.drop(uid)
        try:
            self._decision_events.scheduled(order.pod, order.node, order.placed, order.score, order.decision)
        except Exception:
            log.exception("defect", error_code=error_codes.INTERNAL, pod=order.pod.key)

    async def _find_out(
        self, uid: identifiers.PodUid, key: str, node: identifiers.NodeName, refused: errors.Conflict | None = None
    ) -> None:
        """Read the pod until it is known whether its Binding was done; its place is kept that long.

        Args:
            uid: The pod.
            key: Its namespace and name.
            node: Where it was to be bound.
            refused: The API server's refusal, if it gave one: then nothing is under way, and one look is enough.

        Raises:
            BindRefused: It was not done.
        """
        if refused is None:
            await asyncio.sleep(leadership.BINDING_TIMEOUT_SECONDS)  # Until then it may still be done.
        backoff = _FIND_OUT_BACKOFF_SECONDS
        while self._ledger.is_assumed(uid):  # The watch may say it first.
            try:
                await self.reader.read(uid, key)
                break
            except errors.KubernetesError as trouble:
                log.warning("bind in doubt", error_code=error_codes.BIND_UNKNOWN, pod=key, cause=str(trouble))
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, 10.0)
        if self._ledger.is_assumed(uid):
            self._mirror.not_bound(uid)
            raise BindRefused(
                error_codes.BIND_FAILED, str(refused) if refused else "the API server did not do the Binding"
            )
        held = self._ledger.pod(uid)
        if held is None:
            raise BindRefused(error_codes.POD_GONE, "the pod was deleted, or has ended")
        self._already_bound(held, node)
