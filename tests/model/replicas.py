"""Two replicas of the real extender, their kube-schedulers and one API server, in virtual time.

What decides and binds is the real code (`LeaseGuard`, `Binder`, mirror, ledger). The API server, the networks and the
election are models: a call may be delayed on its way, while it is done, and on its way back, its answer may be lost,
and a call that was given up before it arrived never does, because its connection is reset. Minutes take milliseconds:
the loop's clock jumps to the next thing that happens.

Source: k8s.io/client-go/tools/leaderelection, for how a Lease is acquired, renewed and released.
"""

import asyncio
import contextlib
import copy
import json
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any
from urllib import parse

import msgspec

from gpu_sharing.adapters import objects
from gpu_sharing.core import errors
from lab import gpus
from scheduler_extender.act import binding, leadership
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.settings import Settings
from tests.support import accounting, fakes
from tests.support.extender_world import bind_call

MODEL = gpus.Model("NVIDIA A100", 10_000)
LIMITS = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "6000"}
"""Two such pods do not fit on one GPU."""
NODES = ("node-a", "node-b")
LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15.0, 10.0, 2.0
_LOOKS_SECONDS = (0.3, 0.3, 0.3, 4.0)
"""Between two pods that a kube-scheduler tries; a pod that was rejected waits for seconds."""


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: the time until the next timer has passed at once."""

    def __init__(self, clock: "VirtualLoop") -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self._clock.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class Network:
    """Between one replica and the API server."""

    def __init__(self) -> None:
        self.is_cut = False
        self.there_seconds = self.done_seconds = self.back_seconds = 0.01
        self.loses_answers = False
        self._waiting: list[Callable[[], None]] = []

    def pass_on(self, deliver: Callable[[], None]) -> None:
        if self.is_cut:
            self._waiting.append(deliver)
        else:
            deliver()

    def heal(self) -> None:
        self.is_cut = False
        for deliver in self._waiting:
            deliver()
        self._waiting.clear()


class ApiServer:
    """Pods, and one Lease."""

    def __init__(self) -> None:
        self.hardware = [gpus.gpu_node(name, MODEL, 1) for name in NODES]
        self.pods: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.lease: dict[str, Any] | None = None
        self._version = 0

    def put(self, pod: dict[str, Any], *, deleted: bool = False) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        name = pod["metadata"]["name"]
        if deleted:
            self.pods.pop(name, None)
        else:
            self.pods[name] = pod
        self.history.append({"deleted": deleted, "pod": copy.deepcopy(pod)})

    def bind(self, name: str, body: Any) -> bytes:
        pod = self.pods.get(name)
        if pod is None or pod["metadata"]["uid"] != body["metadata"]["uid"]:
            raise errors.NotFound(name, 404)
        if pod["spec"].get("nodeName"):
            raise errors.Conflict(f"pod {name} is already assigned", 409)
        bound = copy.deepcopy(pod)
        bound["spec"]["nodeName"] = body["target"]["name"]
        bound["metadata"]["annotations"].update(body["metadata"]["annotations"])
        self.put(bound)
        return b"{}"

    def read_pod(self, name: str) -> dict[str, Any]:
        if name not in self.pods:
            raise errors.NotFound(name, 404)
        return copy.deepcopy(self.pods[name])

    def read_lease(self) -> dict[str, Any]:
        if self.lease is None:
            raise errors.NotFound("lease", 404)
        return copy.deepcopy(self.lease)

    def write_lease(self, lease: dict[str, Any], version: str) -> None:
        """Create it with an empty version, or update that version of it."""
        current = "" if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if current != version:
            raise errors.Conflict("the Lease has changed", 409)
        self._version += 1
        written = copy.deepcopy(lease)
        written["metadata"]["resourceVersion"] = str(self._version)
        written["metadata"].setdefault("uid", f"lease-{self._version}")
        self.lease = written

    def mark_lease(self, body: Any) -> bytes:
        if self.lease is None or self.lease["metadata"]["uid"] != body["metadata"]["uid"]:
            raise errors.Conflict("another Lease", 409)
        marked = copy.deepcopy(self.lease)
        marked["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        self.write_lease(marked, self.lease["metadata"]["resourceVersion"])
        return b"{}"


class Client:
    """What one replica calls the API server by."""

    def __init__(self, api: ApiServer, network: Network) -> None:
        self._api = api
        self._network = network

    async def call(self, execute: Callable[[], Any], timeout_seconds: float) -> Any:
        loop, network = asyncio.get_running_loop(), self._network
        answer: asyncio.Future[Any] = loop.create_future()
        given_up = False

        def come_back(result: Any) -> None:
            if not answer.done():
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

        def do() -> None:
            result: Any
            try:
                result = execute()
            except errors.KubernetesError as refused:
                result = refused
            if not network.loses_answers:
                loop.call_later(network.back_seconds, network.pass_on, lambda: come_back(result))

        def arrive() -> None:
            if not given_up:  # Else its connection was reset before.
                loop.call_later(network.done_seconds, do)

        loop.call_later(network.there_seconds, network.pass_on, arrive)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await answer
        except TimeoutError:
            raise errors.Unavailable("no answer in time") from None
        finally:
            given_up = True
            if answer.done() and not answer.cancelled():
                answer.exception()

    async def post(self, path: str, body: bytes, timeout_seconds: float = 3.0) -> bytes:
        name = parse.urlsplit(path).path.split("/")[6]
        decoded = json.loads(body)
        result: bytes = await self.call(lambda: self._api.bind(name, decoded), timeout_seconds)
        return result

    async def get(self, path: str, kind: type[Any], timeout_seconds: float = 3.0) -> Any:
        if kind is objects.Lease:
            return msgspec.convert(await self.call(self._api.read_lease, timeout_seconds), kind)
        name = path.split("/")[6]
        return msgspec.convert(await self.call(lambda: self._api.read_pod(name), timeout_seconds), kind)

    async def patch(self, path: str, body: bytes, timeout_seconds: float = 3.0) -> bytes:
        decoded = json.loads(body)
        if "/leases/" not in path:
            return b"{}"
        result: bytes = await self.call(lambda: self._api.mark_lease(decoded), timeout_seconds)
        return result


class Replica:
    """An extender with its kube-scheduler: both start, follow the cluster, and are killed or ended together."""

    def __init__(self, api: ApiServer, name: str, choose: random.Random) -> None:
        self.name = name
        self.watch_is_silent = False
        self._choose = choose
        self.network = Network()
        self.scheduler_network = Network()
        self._api = api
        self._client = Client(api, self.network)
        self._scheduler_client = Client(api, self.scheduler_network)
        self._tasks: list[asyncio.Task[None]] = []
        self._count = 0
        self.runs = False

    def start(self) -> None:
        """Start both processes."""
        self.runs = True
        self._count += 1
        self._holder = f"{self.name}_{self._count}"
        loop = asyncio.get_running_loop()
        self._core = DecisionCore(Settings(), Metrics(), loop.time)
        for node in self._api.hardware:
            self._core.mirror.nodes.changed(msgspec.convert(copy.deepcopy(node), objects.Node))
        reports = DecisionEvents(self._core, fakes.SilentRecorder(), lambda: False)
        client: Any = self._client
        self._guard = leadership.LeaseGuard(client, "kube-system/hami", self.name, self._list, loop.time)
        self._binder = binding.Binder(client, self._core, reports, self._guard.leads)
        self._seen = 0
        self._elected_until = float("-inf")
        self._observed: tuple[str, float] = ("", float("-inf"))
        for work in (self._follow(), self._guard.run(), self._binder.reader.run(), self._elect(), self._schedule()):
            self._spawn(work)

    def kill(self) -> None:
        """Kill both: what they sent and was delivered is done all the same."""
        self.runs = False
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    async def end(self) -> None:
        """End both as Kubernetes does: the kube-scheduler releases the Lease, the extender finishes and hands over."""
        if not self.runs:
            return
        self.runs = False
        release = asyncio.ensure_future(self._release())
        for _ in range(200):
            if not self._binder.under_way:
                await self._guard.hand_over()
                break
            await asyncio.sleep(0.1)
        await release
        self.kill()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    # The extender's watch and list.

    async def _follow(self) -> None:
        await asyncio.sleep(2)  # The delay of its start.
        await self._list()
        while True:
            await asyncio.sleep(0.05)
            if self.network.is_cut or self.watch_is_silent:
                continue
            while self._seen < len(self._api.history):
                event = self._api.history[self._seen]
                self._seen += 1
                pod = msgspec.convert(copy.deepcopy(event["pod"]), objects.Pod)
                if event["deleted"]:
                    self._core.mirror.pods.deleted(pod)
                else:
                    self._core.mirror.pods.changed(pod)

    async def _list(self) -> None:
        while True:
            started = asyncio.get_running_loop().time()
            try:
                read, pods = await self._client.call(self._snapshot, 10.0)
            except errors.KubernetesError:
                await asyncio.sleep(0.5)
                continue
            for _ in self._core.mirror.pods.replaced(pods, started):
                pass
            self._seen = read
            return

    def _snapshot(self) -> tuple[int, list[objects.Pod]]:
        pods = [msgspec.convert(copy.deepcopy(pod), objects.Pod) for pod in self._api.pods.values()]
        return len(self._api.history), pods

    # Its kube-scheduler.

    async def _elect(self) -> None:
        while True:
            with contextlib.suppress(errors.KubernetesError):
                await self._acquire_or_renew()
            await asyncio.sleep(RETRY_SECONDS)

    async def _acquire_or_renew(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            lease = await self._scheduler_client.call(self._api.read_lease, RENEW_SECONDS)
        except errors.NotFound:
            fresh = {"metadata": {}, "spec": self._spec(0)}
            await self._scheduler_client.call(lambda: self._api.write_lease(fresh, ""), RENEW_SECONDS)
            self._elected_until = begun + RENEW_SECONDS
            return
        version, holder = lease["metadata"]["resourceVersion"], lease["spec"]["holderIdentity"]
        if self._observed[0] != version:
            self._observed = version, loop.time()
        if holder not in ("", self._holder) and loop.time() < self._observed[1] + LEASE_SECONDS:
            self._elected_until = float("-inf")
            return
        transitions = lease["spec"]["leaseTransitions"] + (holder != self._holder)
        written = {**lease, "spec": self._spec(transitions)}
        await self._scheduler_client.call(lambda: self._api.write_lease(written, version), RENEW_SECONDS)
        self._elected_until = begun + RENEW_SECONDS

    async def _release(self) -> None:
        self._elected_until = float("-inf")
        with contextlib.suppress(errors.KubernetesError):
            lease = await self._scheduler_client.call(self._api.read_lease, 2.0)
            if lease["spec"]["holderIdentity"] == self._holder:
                lease["spec"]["holderIdentity"] = ""
                version = lease["metadata"]["resourceVersion"]
                await self._scheduler_client.call(lambda: self._api.write_lease(lease, version), 2.0)

    def _spec(self, transitions: int) -> dict[str, Any]:
        return {"holderIdentity": self._holder, "leaseDurationSeconds": 15, "leaseTransitions": transitions}

    async def _schedule(self) -> None:
        """Ask the extender to bind every pod that has no node, while elected; which node is not its choice here."""
        asked: dict[str, asyncio.Task[None]] = {}
        while True:
            await asyncio.sleep(self._choose.choice(_LOOKS_SECONDS))
            if asyncio.get_running_loop().time() > self._elected_until:
                continue
            waiting = [pod for pod in self._api.pods.values() if not pod["spec"].get("nodeName")]
            free = [pod for pod in waiting if (task := asked.get(pod["metadata"]["name"])) is None or task.done()]
            if free:  # One at a time, in an order of its own.
                pod = self._choose.choice(free)
                task = asyncio.ensure_future(self._bind(copy.deepcopy(pod)))
                asked[pod["metadata"]["name"]] = task
                self._tasks.append(task)

    async def _bind(self, pod: dict[str, Any]) -> None:
        for node in self._choose.sample(NODES, len(NODES)):
            if (await self._binder.bind(bind_call(pod, node))).code is None:
                return
        await asyncio.sleep(1)


class World:
    """Both replicas, and what happens to them."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.api = ApiServer()
        self.choose = random.Random(0)
        self.replicas = [Replica(self.api, name, self.choose) for name in ("host-1", "host-2")]
        self._pods = 0
        self.run(self._start())

    async def _start(self) -> None:
        for replica in self.replicas:
            replica.start()

    def networks(self) -> list[Network]:
        return [network for one in self.replicas for network in (one.network, one.scheduler_network)]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def advance(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def do(self, act: Callable[[], None]) -> None:
        """Act on the loop."""

        async def acting() -> None:
            act()

        self.run(acting())

    def create_pod(self) -> None:
        self._pods += 1
        name = f"pod-{self._pods}"
        containers = [{"name": "c", "resources": {"limits": dict(LIMITS)}}]
        metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "annotations": {}}
        spec = {"schedulerName": "hami-scheduler", "nodeName": "", "containers": containers}
        self.api.put({"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}})

    def delete_bound_pod(self) -> None:
        bound = [pod for pod in self.api.pods.values() if pod["spec"].get("nodeName")]
        if bound:
            self.api.put(copy.deepcopy(bound[0]), deleted=True)

    def violations(self) -> list[str]:
        return accounting.violations(self.api.hardware, self.api.pods.values())

    def leader(self) -> Replica | None:
        """The replica that the Lease names."""
        holder = self.api.lease["spec"]["holderIdentity"] if self.api.lease else ""
        return next((one for one in self.replicas if holder.startswith(f"{one.name}_")), None)

    def unbound(self) -> list[str]:
        return [name for name, pod in self.api.pods.items() if not pod["spec"].get("nodeName")]

    def close(self) -> None:
        async def end() -> None:
            for replica in self.replicas:
                replica.kill()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(end())
        self.loop.close()
