"""HTTP for kube-scheduler's verbs: routes, limits, and what an exception answers.

kube-scheduler drops the body of anything but 200, so a failed filter or bind is 200 with `Error`. Answers carry a
Content-Length in one write, because kube-scheduler opens a new connection after each chunked one; connections are
kept longer than the 90 s that it keeps them.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from gpu_sharing.adapters import guarded_http, objects
from gpu_sharing.core import allocations, error_codes, identifiers, requests
from scheduler_extender import worker
from scheduler_extender.act import binding
from scheduler_extender.cluster import pending
from scheduler_extender.decide import verbs
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import turns, wire

Scope = MutableMapping[str, Any]
Receive = guarded_http.Receive
Send = guarded_http.Send

MOST_BODY_BYTES = 64 * 1024 * 1024
"""5,000 nodes as whole objects; names alone are under 200 KB."""
_MOST_BODIES_BYTES = 2 * MOST_BODY_BYTES
"""Of all calls that are under way."""
CANARY = "canary"
"""A verb that only computes where a small pod would fit: by it the process finds out whether it answers callers."""
_CANARY_REQUEST = requests.PodRequest(kinds=(allocations.Kind.APP,), containers=(requests.GpuRequest(1, memory_mib=1),))
_BODY_WITHIN_SECONDS = 10.0
_MOST_IN_FLIGHT = 256
"""Whatever they take: each has a body in memory."""

log = structlog.get_logger("server")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no call may be answered now."""

    code: error_codes.Code
    message: str


class BodyTooLarge(Exception):
    """The body is larger than is read."""


class TooManyBodies(Exception):
    """Bodies of other requests, which are worked on, leave no memory for this one."""


class BodyBudget:
    """Limits the bytes of all request bodies that are in memory at one time.

    At the limit the body that is unfinished for the longest time is dropped, so that callers that finish are served.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[object, int] = {}
        self._unfinished: dict[object, asyncio.Timeout] = {}

    @contextlib.asynccontextmanager
    async def reading(self, receive: Receive, most_bytes: int) -> AsyncIterator[bytes]:
        """Read the whole body of a request, and count it until the context ends.

        Raises:
            BodyTooLarge: It is longer than `most_bytes`.
            CallerGone: The caller hung up, did not finish in time, or its body was dropped.
            TooManyBodies: There is no memory for it.
        """
        reader = object()
        self._kept[reader] = 0
        try:
            yield await self._read(reader, receive, most_bytes)
        finally:
            self._kept.pop(reader, None)

    async def _read(self, reader: object, receive: Receive, most_bytes: int) -> bytes:
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(_BODY_WITHIN_SECONDS) as limit:
                self._unfinished[reader] = limit
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise guarded_http.CallerGone
                    chunk = message.get("body", b"")
                    self._keep(reader, len(chunk), most_bytes)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError as cause:
            raise guarded_http.CallerGone from cause
        finally:
            self._unfinished.pop(reader, None)

    def _keep(self, reader: object, size: int, most_bytes: int) -> None:
        if self._kept.get(reader, 0) + size > most_bytes:
            raise BodyTooLarge
        while sum(self._kept.values()) + size > self._most_bytes:
            oldest = next((other for other in self._unfinished if other is not reader), None)
            if oldest is None:
                raise TooManyBodies
            self._unfinished.pop(oldest).reschedule(asyncio.get_running_loop().time())
            self._kept.pop(oldest)
        self._kept[reader] = self._kept.get(reader, 0) + size


async def answer(send: Send, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
    """Send an answer in one piece."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _caller_gone(scope: Scope) -> Callable[[], bool]:
    """Return what says whether the caller of a request has hung up, where the listener can say it."""
    extensions: Mapping[str, Mapping[str, Callable[[], bool]]] = scope.get("extensions") or {}
    return extensions.get(guarded_http.CALLER_GONE, {}).get("ask", lambda: False)


def error_body(code: error_codes.Code, message: str) -> bytes:
    """Return a JSON error: `Error` for kube-scheduler, code and message for people."""
    return orjson.dumps({"Error": f"{code}: {message}", "error_code": code, "message": message})


class VerbServer:
    """The ASGI application that kube-scheduler calls: bytes to values, one decision, a report, values to bytes.

    Attributes:
        last_call_at: Monotonic seconds of the last call.
        answered_at: Monotonic seconds of the last answer that was not a refusal.
    """

    def __init__(
        self,
        core: DecisionCore,
        binder: binding.Binder,
        decision_events: DecisionEvents,
        refusal: Callable[[], Refusal | None],
    ) -> None:
        """Join the parts.

        Args:
            core: What decides.
            binder: What binds.
            decision_events: What reports decisions.
            refusal: Returns why no call may be answered now, or None.
        """
        self._mirror = core.mirror
        self._pending = core.pending
        self._verbs = verbs.Verbs(core)
        self._binder = binder
        self._decision_events = decision_events
        self._refusal = refusal
        self._metrics = metrics = core.metrics
        self._in_flight = 0
        self._bodies = BodyBudget(_MOST_BODIES_BYTES)
        self._turns = turns.Turns(core.settings.most_queued_calls, core.settings.longest_queue_seconds)
        metrics.in_flight.set_function(lambda: self._in_flight)
        metrics.queued.set_function(lambda: self._turns.queued)
        metrics.predicted_wait.set_function(lambda: self._turns.predicted_seconds)
        metrics.shed_from.labels(threshold="queued_calls").set(core.settings.most_queued_calls)
        metrics.shed_from.labels(threshold="predicted_seconds").set(core.settings.longest_queue_seconds)
        self.last_call_at = self.answered_at = float("-inf")
        self._filtered: tuple[identifiers.PodUid, bytes] | None = None
        """The pod of the last filter and the names of its answer: mostly prioritize is asked about the same bytes."""
        self._priorities = wire.Priorities()
        self._timers = {
            "filter": metrics.filter_seconds,
            "prioritize": metrics.score_seconds,
            "bind": metrics.bind_seconds,
            "preempt": metrics.preempt_seconds,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call of kube-scheduler."""
        if scope["type"] != "http":
            return
        verb = scope["path"].strip("/").rpartition("/")[2]
        if verb == CANARY:
            await self._answer_canary(send)
            return
        if verb not in self._timers:
            await self._refuse(send, 404, error_codes.UNKNOWN_ROUTE, f"no verb {verb[:40]!r}: filter, prioritize, bind")
            return
        if scope["method"] != "POST":
            await self._refuse(send, 405, error_codes.UNKNOWN_ROUTE, f"{verb} takes POST")
            return
        if self._in_flight >= _MOST_IN_FLIGHT or self._turns.sheds(verb):
            self._metrics.calls.labels(verb=verb, outcome="shed").inc()
            await self._refuse(send, self._failure_status(verb), error_codes.BUSY, "busy, retry")
            return
        self._in_flight += 1
        self.last_call_at = time.monotonic()
        try:
            await self._serve(verb, receive, send, _caller_gone(scope))
        finally:
            self._in_flight -= 1

    async def _answer_canary(self, send: Send) -> None:
        """Answer on how many nodes a small pod would fit, computed as filter does; 0 while no call may be answered."""
        fitting = 0 if self._refusal() else self._verbs.fitting_nodes(_CANARY_REQUEST)
        await answer(send, 200, orjson.dumps({"fitting": fitting}))

    async def _serve(self, verb: str, receive: Receive, send: Send, caller_gone: Callable[[], bool]) -> None:
        failure = self._failure_status(verb)
        outcome = "refused"
        try:
            async with self._bodies.reading(receive, MOST_BODY_BYTES) as body:
                refusal = self._refusal()
                if refusal is not None:
                    await self._refuse(send, failure, refusal.code, refusal.message)
                else:
                    result = await self._timed(verb, body, receive, caller_gone)
                    if caller_gone():
                        raise guarded_http.CallerGone
                    await answer(send, 200, result)
                    outcome = "answered"
                    self.answered_at = time.monotonic()
        except guarded_http.CallerGone:
            outcome = "cancelled"
            log.info("caller gone", verb=verb)
        except BodyTooLarge:
            text = f"the body is larger than {MOST_BODY_BYTES} bytes; set nodeCacheCapable: true"
            await self._refuse(send, failure, error_codes.BODY_TOO_LARGE, text)
        except (TooManyBodies, worker.Busy):
            await self._refuse(send, failure, error_codes.BUSY, "busy, retry")
        except wire.BadRequest as bad:
            await self._refuse(send, 200 if failure == 200 else 400, error_codes.BAD_REQUEST, str(bad))
        except Exception:
            log.exception("defect", error_code=error_codes.INTERNAL, verb=verb)
            await self._refuse(send, failure, error_codes.INTERNAL, f"{verb} failed; see the extender's log")
        finally:
            self._metrics.calls.labels(verb=verb, outcome=outcome).inc()

    async def _timed(self, verb: str, body: bytes, receive: Receive, caller_gone: Callable[[], bool]) -> bytes:
        arrived = time.perf_counter()
        await self._turns.take(verb, caller_gone)
        started = time.perf_counter()
        match verb:
            case "filter":
                result, decision = self.filter(body)
            case "prioritize":
                result, decision = self.prioritize(body)
            case "preempt":
                result, decision = await guarded_http.while_caller_listens(receive, self.preempt(body)), None
            case _:
                result, decision = await self.bind(body)
        if verb != "bind":  # It waits for the API server, and leaves the loop to others.
            self._turns.took(verb, time.perf_counter() - started)
        # An OpenMetrics scraper finds the log lines of a slow one by it.
        exemplar: dict[str, str] | None = {"decision_id": decision} if decision else None
        self._timers[verb].observe(time.perf_counter() - arrived, exemplar)
        return result

    def filter(self, body: bytes) -> tuple[bytes, identifiers.DecisionId | None]:
        """Answer which of the offered nodes take the pod, and why the others do not.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        args = wire.decode_filter(body)
        names = wire.names_of(args)
        assert args.pod is not None
        pod = self._pod_of(args.pod)
        answer = self._verbs.filter(pod, names) if pod else None
        if pod is None or answer is None:
            return wire.filter_result(args, names, names, wire.encode_names(args, names, names), {}), None
        self._decision_events.filtered(answer, names)
        if answer.rejection:
            self._metrics.refusals.labels(error_code=answer.rejection.code).inc()
        fitting = answer.decision.names
        names_json = wire.encode_names(args, names, fitting)
        self._filtered = pod.uid, names_json
        return wire.filter_result(args, names, fitting, names_json, answer.refused), answer.decision.id

    def prioritize(self, body: bytes) -> tuple[bytes, identifiers.DecisionId | None]:
        """Answer a score for each node.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        pod, names = self._repeated(body) or self._decoded(body)
        if pod is None:
            return self._priorities.encode(names), None
        ranking = self._verbs.prioritize(pod, names)
        self._decision_events.prioritized(pod, names, ranking)
        body = self._priorities.encode(names, ranking.best or "", ranking.score)
        return body, ranking.decision.id if ranking.decision else None

    def _repeated(self, body: bytes) -> tuple[pending.AnyPod, list[str]] | None:
        """The pod and the names of a body that repeats the last answer of filter, without decoding it."""
        if self._filtered is None:
            return None
        uid, names_json = self._filtered
        entry = self._pending.entry(uid)
        decision = entry.decision if entry else None
        if entry is None or decision is None or not decision.names:
            return None
        repeats = uid == wire.uid_of(body) and wire.repeats(body, names_json)
        return (entry.pod, decision.names) if repeats else None

    def _decoded(self, body: bytes) -> tuple[pending.AnyPod | None, list[str]]:
        args = wire.decode_filter(body)
        names = wire.names_of(args)
        assert args.pod is not None
        return self._pod_of(args.pod), names

    async def preempt(self, body: bytes) -> bytes:
        """Answer on which nodes eviction lets the pod's GPUs fit, and which pods to evict there.

        Raises:
            BadRequest: The body is not what the protocol defines.
            Busy: Too many computations are queued.
        """
        args = wire.decode_preempt(body)
        assert args.pod is not None
        chosen, pod = wire.victims_of(args), self._pod_of(args.pod)
        uids = {
            name: [identifiers.PodUid(victim.uid) for victim in victims.pods or () if victim]
            for name, victims in chosen.items()
        }
        helping = await self._verbs.preempt(pod, uids) if pod else None
        if helping is None:
            return wire.preempt_result(chosen)
        return wire.preempt_result(
            {
                name: wire.MetaVictims([wire.MetaPod(uid) for uid in victims], chosen[name].num_pdb_violations)
                for name, victims in helping.items()
            }
        )

    async def bind(self, body: bytes) -> tuple[bytes, identifiers.DecisionId | None]:
        """Bind a pod and answer whether that was done.

        Raises:
            BadRequest: The body is not what the protocol defines.
        """
        args = wire.decode_bind(body)
        key = f"{args.pod_namespace}/{args.pod_name}"
        call = binding.BindCall(identifiers.PodUid(args.pod_uid), key, identifiers.NodeName(args.node))
        try:
            outcome = await self._binder.bind(call)
        except Exception:
            self._metrics.bind_failed(error_codes.INTERNAL)
            raise
        if outcome.code:
            self._metrics.bind_failed(outcome.code)
            return wire.error_result(f"{outcome.code}: {outcome.message}"), outcome.decision
        self._metrics.bind_success.inc()
        return wire.BOUND, outcome.decision

    def _pod_of(self, pod: objects.Pod) -> pending.AnyPod | None:
        """The pod as a value, or None if it requests no GPU."""
        pending_pod = self._mirror.pod_to_decide(pod)
        if pending_pod is not None:
            wire.demand_identity(pod)
        return pending_pod

    def _failure_status(self, verb: str) -> int:
        """200 where kube-scheduler reads `Error`; prioritize and preempt have no such field."""
        return 200 if verb in ("filter", "bind") else 500

    async def _refuse(self, send: Send, status: int, code: error_codes.Code, message: str) -> None:
        self._metrics.bad_requests.labels(error_code=code).inc()
        log.error("call refused", error_code=code, cause=message)
        await answer(send, status, error_body(code, message))
