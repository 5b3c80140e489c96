"""Middleware of web servers that records each request: for ASGI and for WSGI, without a framework.

The model is a fixed name or a function of the request. The trace id of `traceparent` stands in the log lines that
`structured_logging` writes during the request.

Source: the ASGI specification (HTTP), PEP 3333, W3C Trace Context.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

from gpu_sharing.workload import structured_logging
from gpu_sharing.workload.inference import InferenceMetricsCollector

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ModelOf = str | Callable[[Any], str]
UNKNOWN_MODEL = "unknown"
CANCELLED, FAILED = "cancelled", "500"


class MetricsASGIMiddleware:
    """Records each HTTP request of an ASGI application; other scopes, such as websockets, pass.

    Args:
        app: The application.
        metrics: Where the requests are recorded.
        model: The model, or a function from the scope to it; what it returns is bounded as a label.
    """

    def __init__(self, app: AsgiApp, metrics: InferenceMetricsCollector, model: ModelOf = UNKNOWN_MODEL) -> None:
        self._app = app
        self._metrics = metrics
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; see ASGI."""
        if scope.get("type") != "http":
            await self._app(scope, receive, send)
            return
        status, start = FAILED, time.perf_counter()

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message.get("type") == "http.response.start":
                status = str(message.get("status", FAILED))
            await send(message)

        headers = dict(scope.get("headers") or ())
        traceparent = headers.get(b"traceparent", b"").decode("latin-1")
        with self._metrics.connection(), structured_logging.traced(traceparent):
            try:
                await self._app(scope, receive, sending)
            except BaseException as cause:
                status = FAILED if isinstance(cause, Exception) else CANCELLED
                raise
            finally:
                model = _model(self._model, scope)
                self._metrics.record_request(model, status, time.perf_counter() - start)


class MetricsWSGIMiddleware:
    """Records each request of a WSGI application, until its body was sent.

    Args:
        app: The application.
        metrics: Where the requests are recorded.
        model: The model, or a function from the environ to it; what it returns is bounded as a label.
    """

    def __init__(
        self, app: Callable[..., Iterable[bytes]], metrics: InferenceMetricsCollector, model: ModelOf = UNKNOWN_MODEL
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._model = model

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve a request; see PEP 3333."""
        request = _WsgiRequest(self._metrics, _model(self._model, environ))

        def starting(status: str, *arguments: Any) -> Any:
            request.status = status.partition(" ")[0]
            return start_response(status, *arguments)

        with structured_logging.traced(str(environ.get("HTTP_TRACEPARENT", ""))):
            try:
                return _Body(self._app(environ, starting), request)
            except BaseException:
                request.status = FAILED
                request.end()
                raise


class _WsgiRequest:
    """A request from its start to the end of its body; it ends once, in whatever way."""

    def __init__(self, metrics: InferenceMetricsCollector, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._start = time.perf_counter()
        self._connection = metrics.connection()
        self._connection.__enter__()
        self._has_ended = False
        self.status = FAILED

    def end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._connection.__exit__(None, None, None)
            self._metrics.record_request(self._model, self.status, time.perf_counter() - self._start)


class _Body:
    """The body of an answer; the server closes it, also when the client has gone."""

    def __init__(self, inner: Iterable[bytes], request: _WsgiRequest) -> None:
        self._inner = inner
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except Exception:
            self._request.status = FAILED
            raise
        finally:
            self._request.end()

    def close(self) -> None:
        try:
            close = getattr(self._inner, "close", None)
            if close is not None:
                close()
        finally:
            self._request.end()


def _model(model: ModelOf, request: Any) -> str:
    """Return the model of a request; a function that fails does not fail the request."""
    if isinstance(model, str):
        return model
    try:
        return str(model(request))
    except Exception:
        return UNKNOWN_MODEL
