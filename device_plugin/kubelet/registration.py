"""The plugin's socket and its registration: serve first, then register, and again whenever the kubelet restarts.

A kubelet that starts deletes the sockets in its directory and makes its own again, which is how a restart is noticed. A
kubelet that notices the end of an earlier connection only after a new registration closes the new one (`runClient` asks
for the resource's client, which is the new one by then) and offers no device id until a plugin registers once more.

Source: k8s.io/kubernetes pkg/kubelet/cm/devicemanager/plugin/v1beta1/server.go.
"""

import asyncio
import contextlib
import pathlib
import re
import time
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import structlog

from device_plugin.kubelet.servicer import Servicer
from gpu_sharing.adapters import health_endpoint
from gpu_sharing.core import error_codes
from protos.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc

FOLDER = "device-plugins"
KUBELET_SOCKET = "kubelet.sock"
VERSION = "v1beta1"
_POLL_SECONDS = 0.2
_REGISTER_SECONDS = 15.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.2, 10.0
_FIRST_FOLLOWED_SECONDS = 15.0
"""A kubelet that has been told of us calls ListAndWatch within milliseconds, unless its machine is very busy."""
_OPTIONS = [("grpc.max_concurrent_streams", 100), ("grpc.so_reuseport", 0)]

_Identity = tuple[tuple[int, int] | None, bool]

log = structlog.get_logger("kubelet")


class Registration:
    """The plugin's server on its socket, and its registration with the kubelet.

    Args:
        kubelet_dir: The kubelet's directory.
        resource: The resource that the plugin is registered for.
        service: Answers the kubelet.
        prepare: Called before each registration: containers may start right after it.

    Attributes:
        registered: Whether the plugin is registered now.
        registrations: How often it was registered.
        problem: Why it is not registered; empty while it is.
    """

    def __init__(
        self,
        kubelet_dir: pathlib.Path,
        resource: str,
        service: Servicer,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        self._folder = kubelet_dir / FOLDER
        self._resource = resource
        self._service = service
        self._prepare = prepare
        self._endpoint = f"hami-{re.sub(r'[^a-z0-9]+', '-', resource.lower())}.sock"
        self.registered = False
        self.registrations = 0
        self.problem = "not registered yet"

    def component(self, *, required: bool) -> health_endpoint.Component:
        """Return the state for probes."""
        return health_endpoint.Component(self.registered, self.problem or "registered", required=required)

    async def call_own_socket(self) -> None:
        """Call the plugin on the socket that the kubelet calls.

        Raises:
            OSError: It does not answer there.
        """
        async with grpc.aio.insecure_channel(f"unix://{self._folder / self._endpoint}") as channel:
            try:
                await api_pb2_grpc.DevicePluginStub(channel).GetDevicePluginOptions(api_pb2.Empty())
            except grpc.aio.AioRpcError as refused:
                raise OSError(f"{refused.code().name} {refused.details()}") from refused

    async def run(self) -> None:
        """Serve and stay registered until cancelled."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            server, known = None, self._identity()[0]
            try:
                server = await self._serve()
                await self._prepare()
                seen, followed = self._identity(), self._service.followed
                await self._register()
                backoff = _FIRST_BACKOFF_SECONDS
                self.problem = await self._while_followed(seen, followed)
                log.info("registering again", cause=self.problem)
            except (OSError, grpc.aio.AioRpcError, RuntimeError) as refused:
                self.problem = str(refused.details() if isinstance(refused, grpc.aio.AioRpcError) else refused)
                log.error("not registered", error_code=error_codes.PLUGIN_NOT_REGISTERED, cause=self.problem)
                await self._wait_for_kubelet(known, backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
            finally:
                self.registered = False
                if server is not None:
                    await server.stop(grace=None)

    async def _while_followed(self, seen: _Identity, followed_before: int) -> str:
        """Wait for as long as the kubelet that knows us follows the list. Returns why it does no longer."""
        deadline = time.monotonic() + _FIRST_FOLLOWED_SECONDS
        while self._identity() == seen:
            await asyncio.sleep(_POLL_SECONDS)
            was_followed = self._service.followed > followed_before or time.monotonic() > deadline
            if was_followed and not self._service.followers:
                return "the kubelet does not follow the list of device ids"
        return "the kubelet started anew, or a socket is gone"

    async def _serve(self) -> grpc.aio.Server:
        path = self._folder / self._endpoint
        path.unlink(missing_ok=True)
        server = grpc.aio.server(options=_OPTIONS)
        api_pb2_grpc.add_DevicePluginServicer_to_server(self._service, server)
        server.add_insecure_port(f"unix://{path}")
        try:
            await server.start()
        except BaseException:
            await server.stop(grace=None)  # Otherwise grpc ends it when the event loop may be closed already.
            raise
        return server

    async def _register(self) -> None:
        async with grpc.aio.insecure_channel(f"unix://{self._folder / KUBELET_SOCKET}") as channel:
            request = api_pb2.RegisterRequest(
                version=VERSION,
                endpoint=self._endpoint,
                resource_name=self._resource,
                options=api_pb2.DevicePluginOptions(pre_start_required=True),
            )
            stub = api_pb2_grpc.RegistrationStub(channel)
            await stub.Register(request, timeout=_REGISTER_SECONDS)
        self.registered, self.problem = True, ""
        self.registrations += 1
        log.info("registered", resource=self._resource, endpoint=self._endpoint)

    async def _wait_for_kubelet(self, known: tuple[int, int] | None, seconds: float) -> None:
        """Wait, but not once the kubelet has restarted: pods that it admits before the registration fail for good."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._identity()[0] == known:
            await asyncio.sleep(min(_POLL_SECONDS, seconds))

    def _identity(self) -> _Identity:
        """Return the identity of the kubelet's socket, and whether ours exists."""
        kubelet_socket = None
        with contextlib.suppress(OSError):
            status = (self._folder / KUBELET_SOCKET).stat()
            kubelet_socket = (status.st_ino, status.st_ctime_ns)
        return kubelet_socket, (self._folder / self._endpoint).exists()
