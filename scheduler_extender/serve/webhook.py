"""The admission webhook's wire: AdmissionReview in, AdmissionReview out.

It changes nothing by itself, so any replica answers. Configured with `failurePolicy: Ignore`: while no replica answers,
pods are created as they are, and what is wrong with them shows in their events instead.

Source: k8s.io/api admission/v1.
"""

import base64
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import guarded_http
from gpu_sharing.core import error_codes, gangs
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import admission
from scheduler_extender.fleet import never_fits
from scheduler_extender.metrics import Metrics
from scheduler_extender.serve import server
from scheduler_extender.settings import Settings

PATH = "/webhook"
_MOST_BODY_BYTES = 4 * 1024 * 1024
"""The API server takes requests of 3 MiB, and etcd pods of 1.5 MiB."""
_MOST_BODIES_BYTES = 16 * 1024 * 1024
"""Of all calls that are under way: every pod of the cluster reaches this listener."""
_MOST_CONTAINERS = 256
"""Of a pod that is reviewed: reading and copying one takes about 50 us of the loop that answers kube-scheduler."""

_MOST_TOKENS = 50_000
"""Fields and items of an AdmissionReview that is decoded: that many take up to 12 ms, whatever they hold."""

log = structlog.get_logger("webhook")


class _Asked(msgspec.Struct):
    uid: str
    operation: str = ""
    namespace: str = ""
    object: dict[str, Any] | None = None


class _Review(msgspec.Struct):
    request: _Asked


class _UnreadAsked(msgspec.Struct):
    uid: str
    namespace: str = ""


class _UnreadReview(msgspec.Struct):
    request: _UnreadAsked


class Webhook:
    """The ASGI application that the API server calls."""

    def __init__(self, mirror: Mirror, settings: Settings, synced: Callable[[], bool], metrics: Metrics) -> None:
        self._metrics = metrics
        self._ledger = mirror.ledger
        self._settings = settings
        self._synced = synced
        self._bodies = server.BodyBudget(_MOST_BODIES_BYTES)

    async def __call__(self, scope: server.Scope, receive: server.Receive, send: server.Send) -> None:
        """Answer one review of the API server."""
        if scope["type"] != "http":
            return
        if scope["path"].rstrip("/") != PATH or scope["method"] != "POST":
            await server.answer(send, 404, server.error_body(error_codes.UNKNOWN_ROUTE, f"POST {PATH} is all there is"))
            return
        started, outcome = time.perf_counter(), "failed"
        try:
            async with self._bodies.reading(receive, _MOST_BODY_BYTES) as body:
                asked, verdict = self._answer(body)
        except guarded_http.CallerGone:
            return
        except server.BodyTooLarge:
            text = f"the body is larger than {_MOST_BODY_BYTES} bytes"
            await server.answer(send, 413, server.error_body(error_codes.BODY_TOO_LARGE, text))
        except server.TooManyBodies:
            await server.answer(send, 503, server.error_body(error_codes.BUSY, "busy, retry"))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as bad:
            await server.answer(send, 400, server.error_body(error_codes.BAD_REQUEST, f"no AdmissionReview: {bad}"))
        except Exception:
            log.exception("defect", error_code=error_codes.INTERNAL)
            text = "the webhook failed; see the extender's log"
            await server.answer(send, 500, server.error_body(error_codes.INTERNAL, text))
        else:
            self._tell(asked, verdict)
            outcome = "denied" if verdict.refused else "mended" if verdict.patch else "allowed"
            await server.answer(send, 200, _encoded(asked.uid, verdict))
        finally:
            self._metrics.admissions.labels(outcome=outcome).inc()
            self._metrics.webhook_seconds.observe(time.perf_counter() - started)

    def _answer(self, body: bytes) -> tuple[_Asked, admission.AdmissionResult]:
        """Decode a review and judge it. One that would take long to decode is judged by its bytes alone.

        Raises:
            MsgspecError: It is no AdmissionReview.
        """
        if body.count(b",") + body.count(b"[") + body.count(b"{") > _MOST_TOKENS:
            unread = msgspec.json.decode(body, type=_UnreadReview).request
            text = f"over {_MOST_TOKENS} fields and items; write a smaller one"
            return _Asked(unread.uid, namespace=unread.namespace), self._too_large(body, text)
        asked = msgspec.json.decode(body, type=_Review).request
        return asked, self._refused(asked, body) or self._judge(asked)

    def _too_large(self, body: bytes, text: str) -> admission.AdmissionResult:
        """Refuse a pod that requests GPUs; any other pod is admitted unread."""
        if not any(name.encode() in body for name in self._settings.resource_names.managed()):
            return admission.AdmissionResult()
        return admission.AdmissionResult(f"{error_codes.TOO_MANY_CONTAINERS}: the pod requests GPUs and has {text}")

    def _refused(self, asked: _Asked, body: bytes) -> admission.AdmissionResult | None:
        """Return the refusal of a pod with too many containers, without reading each; None for any other pod."""
        spec = (asked.object or {}).get("spec")
        parts = [spec.get(kind) for kind in ("containers", "initContainers")] if isinstance(spec, dict) else []
        count = sum(len(part) for part in parts if isinstance(part, list))
        if count <= _MOST_CONTAINERS:
            return None
        return self._too_large(body, f"{count} containers; at most {_MOST_CONTAINERS} are possible")

    def _judge(self, asked: _Asked) -> admission.AdmissionResult:
        if asked.operation != "CREATE" or asked.object is None:
            return admission.AdmissionResult()
        verdict = admission.review(asked.object, self._settings)
        if verdict.request is None or not self._synced():
            return verdict
        if verdict.gang:
            why = self._ledger.gangs.join_refusal(asked.namespace, verdict.gang)
            if why:
                return admission.AdmissionResult(f"{error_codes.BAD_GANG}: {why}")
        more = map(str, never_fits.obstacles(self._ledger.settle(), verdict.request))
        return dataclasses.replace(verdict, warnings=(*verdict.warnings, *more, *self._sizeless(asked, verdict)))

    def _sizeless(self, asked: _Asked, verdict: admission.AdmissionResult) -> tuple[str, ...]:
        """A warning where no PodGroup and no annotation gives the size of the pod's gang."""
        gang = verdict.gang
        if gang is None or self._ledger.gangs.members((asked.namespace, gang.name)).size_for(gang):
            return ()
        return (f"the pod waits until there is a PodGroup {gang.name}, or write the annotation {gangs.SIZE}",)

    def _tell(self, asked: _Asked, verdict: admission.AdmissionResult) -> None:
        metadata = (asked.object or {}).get("metadata") or {}
        name = metadata.get("name") or metadata.get("generateName", "")
        if verdict.refused:
            code = verdict.refused.partition(":")[0]
            log.info("pod refused", error_code=code, pod=f"{asked.namespace}/{name}", cause=verdict.refused)


def _encoded(uid: str, verdict: admission.AdmissionResult) -> bytes:
    response: dict[str, Any] = {"uid": uid, "allowed": not verdict.refused}
    if verdict.refused:
        response["status"] = {"code": 403, "reason": "Forbidden", "message": verdict.refused}
    if verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(orjson.dumps(verdict.patch)).decode()
    if verdict.warnings:
        response["warnings"] = list(verdict.warnings)
    return orjson.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
