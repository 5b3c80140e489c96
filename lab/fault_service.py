"""The fault injection service in a thread of this process, where the lab's GPUs and API server are."""

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fault_injector import access, consent, injector, measurements, metrics, server, tracker
from fault_injector.backends import Backend
from gpu_sharing.adapters import flags, health_endpoint, kubernetes, listeners
from lab import service_process

_START_SECONDS = 30.0
_Result = TypeVar("_Result")


class FaultService:
    """A running service.

    Attributes:
        url: Of its API.
        injector: Injects and recovers; call it by `call`.
    """

    def __init__(self, kubeconfig: pathlib.Path, record: pathlib.Path, backends: Sequence[Backend]) -> None:
        """Make a service; `running` runs it.

        Args:
            kubeconfig: Of the cluster whose nodes give consent.
            record: The file of the record of faults.
            backends: The ways to inject.
        """
        self._kubeconfig = kubeconfig
        self._record = record
        self._backends = backends
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="fault-service", daemon=True)
        self.url = ""
        self.injector: injector.Injector

    def start(self) -> None:
        """Run the service, and wait until it answers.

        Raises:
            ServiceFailed: It does not start.
        """
        self._thread.start()
        if not self._started.wait(_START_SECONDS) or self._failure is not None:
            raise service_process.ServiceFailed(f"the fault injection service does not start: {self._failure}")

    def stop(self) -> None:
        """Recover all faults, and end."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=_START_SECONDS)

    def call(self, action: Callable[[], _Result]) -> _Result:
        """Call a function on the service's event loop, and return its result."""
        assert self._loop is not None

        async def act() -> _Result:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(_START_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with kubernetes.Client(self._kubeconfig, "hami-fault-injector") as client:
            series = metrics.Metrics()
            self.injector = injector.Injector(
                tracker.FileKeep(self._record), self._backends, consent.NodeLabels(client), series
            )
            probes = health_endpoint.HealthEndpoint(
                health_endpoint.ProbeSettings(), lambda: components(self.injector), series.exposition, dict
            )
            measured = measurements.Measurements(client, lambda: self.injector.recorded)
            api = server.FaultApi(self.injector, measured, access.LoopbackGate(), probes)
            await self.injector.start()
            listener = listeners.listener(api)
            async with listeners.serving({"faults": (flags.Address("127.0.0.1", 0), listener)}) as addresses:
                self.url = f"http://{addresses['faults']}"
                runs = asyncio.create_task(self.injector.run())
                self._started.set()
                await self._stop.wait()
                runs.cancel()
                await self.injector.recover_all()


def components(running: injector.Injector) -> dict[str, health_endpoint.Component]:
    """Return the state of the parts of a service."""
    reason = running.problem or ("read" if running.is_ready else "not read yet")
    return {"record": health_endpoint.Component(running.is_ready and not running.problem, reason)}


@contextlib.contextmanager
def running(kubeconfig: pathlib.Path, record: pathlib.Path, backends: Sequence[Backend]) -> Iterator[FaultService]:
    """Run a service until the context ends; then every fault is recovered.

    Raises:
        ServiceFailed: It does not start.
    """
    service = FaultService(kubeconfig, record, backends)
    try:
        service.start()
        yield service
    finally:
        service.stop()
