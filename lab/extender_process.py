"""The extender as a real process, for the demo, tests and benchmarks."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence

from lab import service_process

ExtenderFailed = service_process.ServiceFailed

_LISTENERS = {"verbs": "--http-bind", "api": "--api-bind", "health": "--health-bind", "webhook": "--webhook-bind"}


class ExtenderProcess(service_process.ServiceProcess):
    """An extender in a separate process."""

    def __init__(
        self,
        kubeconfig: pathlib.Path,
        log_file: pathlib.Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(
            "scheduler_extender",
            _LISTENERS,
            ["--kubeconfig", str(kubeconfig), "--start-delay-seconds", "0", *arguments],
            log_file,
            environment,
            within=within,
            stop=stop,
        )

    @property
    def verbs(self) -> str:
        """The address for kube-scheduler, `HOST:PORT`."""
        return self.addresses["verbs"]

    @property
    def api(self) -> str:
        """The address of its read API."""
        return self.addresses["api"]

    @property
    def webhook(self) -> str:
        """The address of its admission webhook, if it has a certificate."""
        return self.addresses["webhook"]

    @property
    def health(self) -> str:
        """The address of its health and metrics."""
        return self.addresses["health"]


@contextlib.contextmanager
def running(
    kubeconfig: pathlib.Path, log_file: pathlib.Path, *arguments: str, stop: threading.Event | None = None
) -> Iterator[ExtenderProcess]:
    """Run a ready extender until the context ends.

    Raises:
        ExtenderFailed: It is not ready in time.
        service_process.Stopped: `stop` is set before.
    """
    extender = ExtenderProcess(kubeconfig, log_file, *arguments, stop=stop)
    try:
        extender.start()
        extender.wait_ready()
        yield extender
    finally:
        extender.stop()
