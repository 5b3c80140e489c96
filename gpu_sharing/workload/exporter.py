"""Serves the metrics of this process over HTTP, in a thread that is started on request."""

from typing import TYPE_CHECKING

from gpu_sharing.core import error_codes
from gpu_sharing.workload import instruments
from gpu_sharing.workload.errors import WorkloadError, require_range

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Exporter:
    """An HTTP server at `/metrics`.

    Args:
        port: Its port; 0 chooses a free one.
        host: Its address; without it all of the pod.
        registry: What it serves; without it the default registry of prometheus_client.

    Attributes:
        port: The port on which it listens.

    Raises:
        WorkloadError: prometheus_client is missing, or the port cannot be used.
    """

    def __init__(self, port: int = 9400, host: str = "", registry: "CollectorRegistry | None" = None) -> None:
        require_range("port", port, 0, 65535)
        prometheus = instruments.client()
        chosen = prometheus.REGISTRY if registry is None else registry
        try:
            self._server, self._thread = prometheus.start_http_server(port, addr=host or "0.0.0.0", registry=chosen)  # noqa: S104
        except OSError as cause:
            sentence = f"port {port} cannot be used: {cause.strerror or cause}"
            raise WorkloadError(error_codes.WORKLOAD_BAD_SETTING, sentence) from cause
        self.port: int = self._server.server_port

    def stop(self) -> None:
        """Close the port and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
