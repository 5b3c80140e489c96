"""A fake of one node's kubelet, with all that a device plugin uses: sockets, admission, checkpoint, start.

It registers plugins and follows their lists, allocates device ids at random, calls Allocate and PreStartContainer in
the kubelet's order and with its rules about init containers, writes its checkpoint and serves podresources, and
resolves CDI names as a container runtime does. The environment of a started container can be read back.

Source: k8s.io/kubernetes pkg/kubelet/cm/devicemanager, 1.36; compared with the real one in the end-to-end tests.
"""

import asyncio
import base64
import collections
import contextlib
import json
import pathlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from lab import kinds, simple_kubelets, store
from protos.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc
from protos.podresources.v1 import api_pb2 as resources_pb2
from protos.podresources.v1 import api_pb2_grpc as resources_pb2_grpc

CONTAINERD_1 = "containerd://1.7.20"
"""A runtime that does not read CDI names unless configured: it starts the container without them.

Source: containerd 1.7 pkg/cri/sbserver/container_create_linux.go (`EnableCDI`, off by default)."""
CRI_O = "cri-o://1.34.0"
_REFUSALS = {
    "cri-o": "CDI device injection failed: unresolvable CDI devices {}",
    "containerd": "failed to create containerd container: CDI device injection failed: unresolvable CDI devices {}",
}
"""The error messages of runtimes for an unknown name.

Source: cri-o internal/factory/container/device_linux.go, containerd
internal/cri/opts and the CDI library's pkg/cdi/cache.go."""
_RETRY_SECONDS = 0.5
"""The real kubelet retries after 10 to 15 s."""
_PRESTART_SECONDS = 30.0


class Rejected(Exception):
    """The pod is not admitted, finally: `UnexpectedAdmissionError`."""


class NotStarted(Exception):
    """A container is not started: `CreateContainerConfigError`, retried."""


@dataclass(slots=True, kw_only=True)
class Given:
    """The devices allocated to one container."""

    pod_uid: str
    namespace: str
    pod: str
    container: str
    init: bool
    tokens: frozenset[str]
    answer: api_pb2.ContainerAllocateResponse


@dataclass(frozen=True, slots=True)
class Started:
    """The environment, mounts and devices of a started container."""

    environment: dict[str, str]
    mounts: dict[str, str]
    """Host path by path in the container."""
    devices: tuple[str, ...] = field(default=())


class _Registration(api_pb2_grpc.RegistrationServicer):
    def __init__(self, kubelet: "Kubelet") -> None:
        self._kubelet = kubelet

    async def Register(self, request: api_pb2.RegisterRequest, context: Any) -> api_pb2.Empty:  # noqa: N802
        await self._kubelet.connect(request)
        return api_pb2.Empty()


class _PodResources(resources_pb2_grpc.PodResourcesListerServicer):
    def __init__(self, kubelet: "Kubelet") -> None:
        self._kubelet = kubelet

    async def List(  # noqa: N802
        self, request: resources_pb2.ListPodResourcesRequest, context: Any
    ) -> resources_pb2.ListPodResourcesResponse:
        return self._kubelet.pod_resources()


class Kubelet:
    """One node's kubelet.

    Attributes:
        reads_cdi: Whether the container runtime resolves CDI names; one that does not ignores them.
        devices: Health of each id, as the plugin reported.
        given: The devices allocated to containers, by pod UID and container.
        started: The started containers, by the same key.
        listed: Called after each list of the plugin.
    """

    def __init__(
        self, folder: pathlib.Path, cdi_dir: pathlib.Path, resource: str = "nvidia.com/gpu", runtime: str = "containerd"
    ) -> None:
        """Make a kubelet.

        Args:
            folder: The kubelet's folder.
            cdi_dir: The folder of the container runtime's CDI specifications.
            resource: The served resource.
            runtime: The reported container runtime, such as `containerd://1.7.20`.
        """
        self.folder = folder
        self._runtime = runtime.partition(":")[0]
        self.reads_cdi = not runtime.startswith("containerd://1.")
        self._cdi_dir = cdi_dir
        self._resource = resource
        self.devices: dict[str, bool] = {}
        self.given: dict[tuple[str, str], Given] = {}
        self.started: dict[tuple[str, str], Started] = {}
        self.listed: Callable[[], None] = lambda: None
        self._admission = asyncio.Lock()
        self._servers: list[grpc.aio.Server] = []
        self._channel: grpc.aio.Channel | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Create the sockets again; plugins must register again."""
        plugins, resources = self.folder / "device-plugins", self.folder / "pod-resources"
        for folder in (plugins, resources):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("*.sock"):
                old.unlink()
        await self._serve(
            plugins, lambda one: api_pb2_grpc.add_RegistrationServicer_to_server(_Registration(self), one)
        )
        await self._serve(
            resources, lambda one: resources_pb2_grpc.add_PodResourcesListerServicer_to_server(_PodResources(self), one)
        )

    async def _serve(self, folder: pathlib.Path, add: Callable[[grpc.aio.Server], None]) -> None:
        server = grpc.aio.server()
        add(server)
        server.add_insecure_port(f"unix://{folder / 'kubelet.sock'}")
        self._servers.append(server)  # Before its start, so that `stop` ends it where the start is cancelled.
        await server.start()

    async def stop(self) -> None:
        """End as a killed kubelet does: allocations stay in the checkpoint."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
        for server in self._servers:
            await server.stop(grace=None)
        self._servers, self._channel, self._following = [], None, None
        self.devices = dict.fromkeys(self.devices, False)

    async def restart(self) -> None:
        """Stop and start the kubelet."""
        await self.stop()
        await self.start()

    async def connect(self, request: api_pb2.RegisterRequest) -> None:
        """Connect to a plugin that registers, and follow its list."""
        if self._following is not None:
            self._following.cancel()
        earlier, self._channel = self._channel, None
        if earlier is not None:
            await earlier.close()
        self._channel = grpc.aio.insecure_channel(f"unix://{self.folder / 'device-plugins' / request.endpoint}")
        await asyncio.wait_for(self._channel.channel_ready(), 10)
        self._following = asyncio.create_task(self._follow(self._channel))

    async def disconnect(self) -> None:
        """Close the connection to the plugin.

        A real kubelet does so when it notices the end of an earlier connection only after a new registration. Until the
        plugin registers again nothing is allocated.
        """
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for answer in api_pb2_grpc.DevicePluginStub(channel).ListAndWatch(api_pb2.Empty()):
                self.devices = {device.ID: device.health == "Healthy" for device in answer.devices}
                self.listed()
        # The stream has ended: nothing can be allocated until the plugin registers again.
        self.devices = dict.fromkeys(self.devices, False)
        self.listed()

    async def admit(self, pod: store.Object) -> None:
        """Allocate ids to a pod's containers, init containers first; app containers reuse theirs. One pod at a time.

        Raises:
            Rejected: There are too few ids, or Allocate fails.
        """
        async with self._admission:
            await self._admit(pod)

    async def _admit(self, pod: store.Object) -> None:
        reusable: set[str] = set()
        try:
            for container, init in _containers(pod):
                count = _count(container, self._resource)
                if not count:
                    continue
                sidecar = container.get("restartPolicy") == "Always"
                tokens = self._choose(count, set() if sidecar else reusable)
                answer = await self._allocate(tokens)
                metadata = pod["metadata"]
                key = (metadata["uid"], container["name"])
                self.given[key] = Given(
                    pod_uid=metadata["uid"],
                    namespace=metadata["namespace"],
                    pod=metadata["name"],
                    container=container["name"],
                    init=init and not sidecar,
                    tokens=tokens,
                    answer=answer,
                )
                if init and not sidecar:
                    reusable |= tokens
                else:
                    reusable -= tokens
                self.write_checkpoint()
        except Rejected:
            self.release(pod["metadata"]["uid"])
            raise

    def _choose(self, count: int, reusable: set[str]) -> frozenset[str]:
        again = sorted(reusable)[:count]
        taken = {token for given in self.given.values() for token in given.tokens}
        free = [token for token, healthy in self.devices.items() if healthy and token not in taken]
        if len(free) < count - len(again):
            raise Rejected(f"Allocate failed due to no healthy devices present, requested {count}, free {len(free)}")
        return frozenset([*again, *random.sample(free, count - len(again))])

    async def _allocate(self, tokens: frozenset[str]) -> api_pb2.ContainerAllocateResponse:
        ids = list(tokens)
        random.shuffle(ids)
        request = api_pb2.AllocateRequest(container_requests=[api_pb2.ContainerAllocateRequest(devices_ids=ids)])
        try:
            answer = await self._stub().Allocate(request)
        except grpc.aio.AioRpcError as refused:
            raise Rejected(f"Allocate failed due to rpc error: {refused.details()}") from refused
        return answer.container_responses[0]

    async def start_container(self, pod: store.Object, container: dict[str, Any]) -> Started:
        """Start, or start again, a container.

        Raises:
            NotStarted: The plugin or the runtime refuses; retry.
        """
        own = {one["name"]: one.get("value", "") for one in container.get("env") or ()}
        given = self.given.get((pod["metadata"]["uid"], container["name"]))
        if given is None:
            return Started(own, {})
        try:
            await self._stub().PreStartContainer(
                api_pb2.PreStartContainerRequest(devices_ids=list(given.tokens)), timeout=_PRESTART_SECONDS
            )
        except grpc.aio.AioRpcError as refused:
            raise NotStarted(f"PreStartContainer failed: {refused.details()}") from refused
        environment = dict(given.answer.envs) | own  # As the kubelet: the plugin's, then the pod's; CDI later.
        mounts = {one.container_path: one.host_path for one in given.answer.mounts}
        devices = [one.host_path for one in given.answer.devices]
        for device in given.answer.cdi_devices if self.reads_cdi else ():
            edits = self._resolve(device.name)
            environment |= dict(line.split("=", 1) for line in edits.get("env", ()))
            mounts |= {one["containerPath"]: one["hostPath"] for one in edits.get("mounts", ())}
            devices += [one.get("hostPath", one["path"]) for one in edits.get("deviceNodes", ())]
        started = Started(environment, mounts, tuple(devices))
        self.started[(given.pod_uid, given.container)] = started
        return started

    def _resolve(self, name: str) -> dict[str, Any]:
        kind, _, wanted = name.partition("=")
        for path in self._cdi_dir.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                spec = json.loads(path.read_text())
                for device in spec["devices"] if spec["kind"] == kind else ():
                    if device["name"] == wanted:
                        found: dict[str, Any] = device["containerEdits"]
                        return found
        raise NotStarted(_REFUSALS.get(self._runtime, _REFUSALS["containerd"]).format(name))

    def channel(self) -> grpc.aio.Channel:
        """Return the connection to the plugin.

        Raises:
            Rejected: No plugin has registered.
        """
        if self._channel is None:
            raise Rejected("Allocate failed due to can't allocate unregistered device")
        return self._channel

    def _stub(self) -> "api_pb2_grpc.DevicePluginAsyncStub":
        return api_pb2_grpc.DevicePluginStub(self.channel())

    def release(self, uid: str) -> None:
        """Free the ids of a pod that has ended."""
        for key in [key for key in self.given if key[0] == uid]:
            del self.given[key]
            self.started.pop(key, None)
        self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Write the checkpoint of allocations, in the kubelet's own format."""
        entries = [
            {
                "PodUID": given.pod_uid, "ContainerName": given.container, "ResourceName": self._resource,
                "DeviceIDs": {"-1": sorted(given.tokens)},
                "AllocResp": base64.b64encode(given.answer.SerializeToString()).decode(),
            }
            for given in self.given.values()
        ]  # fmt: skip
        data = {"PodDeviceEntries": entries, "RegisteredDevices": {self._resource: sorted(self.devices)}}
        path = self.folder / "device-plugins" / "kubelet_internal_checkpoint"
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"Data": data, "Checksum": 0}))
        part.rename(path)

    def pod_resources(self) -> resources_pb2.ListPodResourcesResponse:
        """Return the answer of podresources: no plain init containers, one entry for each id."""
        by_pod: dict[tuple[str, str], list[Given]] = collections.defaultdict(list)
        for given in self.given.values():
            if not given.init:
                by_pod[(given.namespace, given.pod)].append(given)
        return resources_pb2.ListPodResourcesResponse(
            pod_resources=[
                resources_pb2.PodResources(
                    name=name,
                    namespace=namespace,
                    containers=[
                        resources_pb2.ContainerResources(
                            name=one.container,
                            devices=[
                                resources_pb2.ContainerDevices(resource_name=self._resource, device_ids=[token])
                                for token in sorted(one.tokens)
                            ],
                        )
                        for one in containers
                    ],
                )
                for (namespace, name), containers in by_pod.items()
            ]
        )


class NodeAgent:
    """A fake kubelet for one node of an API server: admits pods that are bound to it, and writes their status."""

    def __init__(self, keep: store.Store, node: str, kubelet: Kubelet) -> None:
        self._keep = keep
        self._node = node
        self._kubelet = kubelet
        self._pods: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        watcher = self._keep.watch(kinds.PODS, self._keep.version)
        try:
            await self._kubelet.start()
            self._kubelet.listed = self._publish
            self._publish()
            for _, pod in list(self._keep.all(kinds.PODS)):
                self._see(pod)
            while (change := await watcher.queue.get()) is not None:
                if change.after is not None:
                    self._see(change.after)
        finally:
            self._keep.unwatch(watcher)
            for task in self._pods.values():
                task.cancel()
            await asyncio.gather(*self._pods.values(), return_exceptions=True)
            await self._kubelet.stop()

    def _publish(self) -> None:
        """Write the node's capacity and allocatable, by the plugin's list."""
        before = self._keep.get(kinds.NODES, "", self._node)
        status = dict(before.get("status") or {})
        for name, count in (
            ("capacity", len(self._kubelet.devices)),
            ("allocatable", sum(self._kubelet.devices.values())),
        ):
            status[name] = {**(status.get(name) or {}), "nvidia.com/gpu": str(count)}
        self._keep.replace(kinds.NODES, ("", self._node), before, {**before, "status": status})

    def _see(self, pod: store.Object) -> None:
        if pod["spec"].get("nodeName") != self._node:
            return
        uid = pod["metadata"]["uid"]
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        if pod["metadata"].get("deletionTimestamp"):
            task = self._pods.pop(uid, None)
            if task is not None:
                task.cancel()
            self._kubelet.release(uid)
            with contextlib.suppress(store.ApiError):
                self._keep.remove(kinds.PODS, key, self._keep.get(kinds.PODS, *key))
        elif uid not in self._pods and pod["status"]["phase"] == "Pending":
            self._pods[uid] = asyncio.create_task(self._run_pod(key, pod))

    async def _run_pod(self, key: store.Key, pod: store.Object) -> None:
        try:
            await self._kubelet.admit(pod)
        except Rejected as refused:
            self._write(key, pod, phase="Failed", reason="UnexpectedAdmissionError", message=str(refused))
            return
        for container, _ in _containers(pod):
            while True:
                try:
                    await self._kubelet.start_container(pod, container)
                    break
                except (NotStarted, Rejected) as refused:
                    self._write(key, pod, reason="CreateContainerConfigError", message=str(refused))
                    await asyncio.sleep(_RETRY_SECONDS)
        self._write(key, pod, **simple_kubelets.running(pod))

    def _write(self, key: store.Key, pod: store.Object, **changes: Any) -> None:
        with contextlib.suppress(store.ApiError):
            before = self._keep.get(kinds.PODS, *key)
            if before["metadata"]["uid"] == pod["metadata"]["uid"]:
                self._keep.replace(kinds.PODS, key, before, {**before, "status": {**before["status"], **changes}})


def _containers(pod: store.Object) -> list[tuple[dict[str, Any], bool]]:
    """Return the containers in the order of their start, and whether each is an init container."""
    spec = pod["spec"]
    return [(one, True) for one in spec.get("initContainers") or ()] + [(one, False) for one in spec["containers"]]


def _count(container: dict[str, Any], resource: str) -> int:
    return int((container.get("resources") or {}).get("limits", {}).get(resource, 0))
