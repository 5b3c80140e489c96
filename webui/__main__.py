"""Start the WebUI: `python -m webui --help`."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import flask
import gunicorn.app.base
import structlog

from gpu_sharing.adapters import flags, health_endpoint, logs, sockets, stdlib_http
from gpu_sharing.core import error_codes, errors
from webui import access, app, cluster, extender_poller, meters, patient_worker, settings
from webui.metrics import Metrics
from webui.settings import Settings

_TURN_SECONDS = 0.001
_MOST_CONNECTIONS = 256
_MOST_ANSWER_STATUS = 499


class _Server(gunicorn.app.base.BaseApplication):  # type: ignore[misc]  # it has no types
    """gunicorn with our settings: one process, many threads."""

    def __init__(self, settings: Settings, extender: extender_poller.Extender) -> None:
        """Everything is made here, so that what cannot be is refused before the first page; it runs in the worker."""
        self._settings = settings
        needs_cluster = settings.auth == "kubernetes" or settings.monitor_service is not None
        self._cluster = cluster.Cluster(settings.kubeconfig) if needs_cluster else None
        monitors = None
        if self._cluster and settings.monitor_service:
            monitors = meters.Monitors(meters.AddressBook(self._cluster, settings.monitor_service).read)
        prometheus = meters.Prometheus(settings.prometheus) if settings.prometheus else None
        self._source = extender_poller.Source(extender, prometheus, monitors)
        self._started_at = time.time()
        self._pages_address = ""
        self._metrics = Metrics(self._data_age_seconds)
        self._canary = health_endpoint.Canary(
            # A page that asks for a user is an answer too.
            lambda: health_endpoint.get_own(self._pages_address, "/", most_status=_MOST_ANSWER_STATUS),
            settings.health,
            lambda: self._metrics.answered_at,
        )
        self._metrics.watch_canary(self._canary)
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        chosen: dict[str, Any] = {
            "bind": str(flags.Address(sockets.host_of(settings.bind), settings.bind.port)),
            "workers": 1,
            "worker_class": patient_worker.PatientWorker,
            "worker_connections": _MOST_CONNECTIONS,
            "threads": settings.threads,
            "accesslog": None,
            "loglevel": "warning",
            "post_worker_init": self._started,
            "worker_exit": self._ended,
            "control_socket_disable": True,
        }
        for name, value in chosen.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        pages = self._application()
        self._metrics.measure(pages)
        return pages

    def _application(self) -> flask.Flask:
        settings = self._settings
        if settings.auth == "kubernetes":
            assert self._cluster is not None
            sessions = access.Sessions()
            return app.create(self._source, settings, access.Reviewed(self._cluster, sessions), sessions)
        proxied = access.Proxied(settings.trusted_proxies, settings.user_header)
        return app.create(self._source, settings, proxied if settings.auth == "proxy" else access.Open())

    def _started(self, worker: Any) -> None:
        """In the worker's process: read, and answer probes."""
        # A page is made in a few short turns; the reader works out a large cluster for a second at a time.
        sys.setswitchinterval(_TURN_SECONDS)
        if self._cluster:
            self._cluster.start()
        self._source.start()
        self._pages_address = sockets.shown(worker.sockets[0].sock)
        structlog.get_logger("webui").info("pages", pages=self._pages_address)
        threading.Thread(target=lambda: asyncio.run(self._probes()), name="probes", daemon=True).start()

    def _ended(self, server: Any, worker: Any) -> None:
        if self._cluster:
            self._cluster.stop()

    async def _probes(self) -> None:
        endpoint = health_endpoint.HealthEndpoint(
            self._settings.health, self._components, self._metrics.exposition, dict
        )
        async with (
            stdlib_http.serving("health", self._settings.health_bind, endpoint.answer),
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._canary.run())
            await asyncio.Event().wait()

    def _data_age_seconds(self) -> float:
        return time.time() - (self._source.view.taken_at or self._started_at)

    def _components(self) -> Mapping[str, health_endpoint.Component]:
        age = self._data_age_seconds() if self._source.view.taken_at else 0.0
        # Old data is better than no page, so that an extender that is away does not take the pages along.
        return {
            "extender": health_endpoint.Component(
                not self._source.problem, self._source.problem or "answers", age, required=False
            ),
            "pages": self._canary.component(),
        }


def main() -> int:
    """Run until stopped. Returns the exit status: 2 for a setting that the process cannot start with."""
    try:
        parsed = settings.parse(sys.argv[1:])
        logs.configure(parsed.verbosity, parsed.log_format)
        extender = extender_poller.Extender(parsed.extender, parsed.extender_ca, parsed.extender_token_file)
        server = _Server(parsed, extender)
    except errors.SettingsError as refused:
        sys.stderr.write(f"webui: {error_codes.INVALID_SETTING}: {refused}\n")
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
