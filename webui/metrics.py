"""Series of the WebUI: its requests by page, the age of its data, and how many users view it."""

import threading
import time
from collections.abc import Callable

import flask

from gpu_sharing.adapters import health_endpoint, metrics_registry

_VIEWING_SECONDS = 300.0
_MOST_VIEWERS = 10_000
_UNKNOWN_PAGE = "unknown"
_FAILED_STATUS = 500


class Metrics(metrics_registry.Series):
    """All series of the process.

    Attributes:
        answered_at: Monotonic seconds of the last answer to another caller that was no failure.
    """

    def __init__(self, data_age_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        """Create the series.

        Args:
            data_age_seconds: Returns the age of the shown data.
            clock: Monotonic seconds.
        """
        super().__init__("webui")
        self._clock = clock
        self._lock = threading.Lock()
        self._viewed_at: dict[str, float] = {}
        self.answered_at = float("-inf")
        self._seconds = self.seconds(
            "hami_webui_request_duration_seconds", "Time to answer a request, by page.", ("page",)
        )
        self._requests = self.counter(
            "hami_webui_requests_total", "Answered requests, by page and HTTP status.", ("page", "status")
        )
        self.gauge(
            "hami_webui_data_age_seconds",
            "Seconds since the extender was read for what the pages show; since the start before the first time.",
        ).set_function(data_age_seconds)
        self.gauge(
            "hami_webui_viewers", "Users, or addresses without users, with a request in the last 5 minutes."
        ).set_function(self._viewers)

    def measure(self, app: flask.Flask) -> None:
        """Observe each request of an application, answers from its cache and refusals among them."""
        flask.request_started.connect(self._started, app, weak=False)
        flask.request_finished.connect(self._finished, app, weak=False)

    def _started(self, app: flask.Flask) -> None:
        flask.g.started_at = time.perf_counter()

    def _finished(self, app: flask.Flask, response: flask.Response) -> None:
        request, now = flask.request, self._clock()
        if request.user_agent.string == health_endpoint.CANARY_AGENT:
            return
        page = request.endpoint or _UNKNOWN_PAGE
        self._seconds.labels(page=page).observe(time.perf_counter() - flask.g.started_at)
        self._requests.labels(page=page, status=response.status_code).inc()
        if response.status_code < _FAILED_STATUS:
            self.answered_at = now
        viewer = flask.g.get("viewer")
        self._view(viewer.name if viewer and viewer.name else request.remote_addr or "", now)

    def _view(self, viewer: str, now: float) -> None:
        with self._lock:
            if viewer in self._viewed_at or len(self._viewed_at) < _MOST_VIEWERS:
                self._viewed_at[viewer] = now

    def _viewers(self) -> int:
        """Return how many have viewed a page lately, and forget the others."""
        oldest = self._clock() - _VIEWING_SECONDS
        with self._lock:
            self._viewed_at = {viewer: at for viewer, at in self._viewed_at.items() if at >= oldest}
            return len(self._viewed_at)
