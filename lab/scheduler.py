"""A scheduler loop that uses the extender protocol as kube-scheduler does.

It implements the parts that affect the calls of an extender: nodes are excluded by device ids, CPU, readiness,
selectors and taints first; filter is called with names; prioritize is skipped when one node is left; bind runs through
the extender while the next pod is scheduled; a rejected pod waits with backoff, and a change of a bound pod or of its
own metadata wakes it.

Source: k8s.io/kubernetes pkg/scheduler, 1.36: schedule_one.go, extender.go.
"""

import asyncio
import functools
import http.client
import itertools
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from gpu_sharing.core import errors, quantities
from lab import api_server, kinds, pods, store

_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 1.0, 10.0
_TIMEOUT_SECONDS = 5.0
_MANAGED = frozenset({"nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores"})
_CHECKED = ("nvidia.com/gpu", "cpu")


@dataclass(slots=True)
class _Queued:
    """A pending pod in the queue."""

    key: store.Key
    attempts: int = 0
    ready_at: float = 0.0
    asleep: bool = False
    """It was rejected, and no later change could help."""


@dataclass(slots=True)
class Latencies:
    """Durations of calls to the extender, in seconds."""

    filter: list[float] = field(default_factory=list)
    prioritize: list[float] = field(default_factory=list)
    bind: list[float] = field(default_factory=list)


class Extender:
    """The connections to an extender: one for the scheduling cycle, and one more per bind in progress."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[http.client.HTTPConnection] = []

    def call(self, verb: str, body: Any) -> Any:
        """Call the extender, and return the decoded answer.

        Raises:
            OSError: No answer, or its status is not 200.
        """
        encoded = orjson.dumps(body)
        for attempt in (1, 2):
            connection = (
                self._idle.pop() if self._idle else http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
            )
            try:
                connection.request("POST", f"/{verb}", encoded, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            except (http.client.HTTPException, OSError) as broken:
                connection.close()
                if attempt == 2 or isinstance(broken, TimeoutError):
                    raise OSError(f"{verb}: {str(broken) or type(broken).__name__}") from broken
                continue
            self._idle.append(connection)
            if answer.status != 200:
                raise OSError(f"{verb}: status {answer.status}")
            return orjson.loads(content)
        raise AssertionError("the second attempt returns or raises")

    def close(self) -> None:
        """Close every connection."""
        while self._idle:
            self._idle.pop().close()


class Scheduler:
    """Places the pods of one `schedulerName` on the nodes of one store."""

    def __init__(self, server: api_server.ApiServer, extender: Extender, name: str = "hami-scheduler") -> None:
        self._store = server.store
        self._extender = extender
        self._name = name
        self._queue: dict[store.Key, _Queued] = {}
        self._wake = asyncio.Event()
        self._assumed: dict[store.Key, str] = {}
        self._used: dict[str, dict[str, float]] = {}
        self._counted: dict[store.Key, tuple[str, dict[str, float]]] = {}
        self._binding: set[asyncio.Task[None]] = set()
        self._random = random.Random(0)
        self.latencies = Latencies()
        self.filter_calls = 0

    async def run(self) -> None:
        """Schedule until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._loop())
        finally:
            self._extender.close()

    async def _follow(self) -> None:
        watcher = self._store.watch(kinds.PODS, self._store.version)
        for key, pod in list(self._store.all(kinds.PODS)):
            self._see(key, None, pod)
        while True:
            change = await watcher.queue.get()
            if change is None:
                watcher = self._store.watch(kinds.PODS, self._store.version)
                for key, pod in list(self._store.all(kinds.PODS)):
                    self._see(key, None, pod)
                continue
            shown = change.after or change.before
            assert shown is not None
            self._see((shown["metadata"]["namespace"], shown["metadata"]["name"]), change.before, change.after)

    def _see(self, key: store.Key, before: store.Object | None, after: store.Object | None) -> None:
        was_bound = bool(before and before["spec"].get("nodeName"))
        bound = bool(after and after["spec"].get("nodeName"))
        if after is None or bound:
            self._queue.pop(key, None)
            self._assumed.pop(key, None)
        if bound or was_bound:
            self._count(key, after)
            for queued in self._queue.values():
                queued.asleep = False
        elif after is not None and after["spec"].get("schedulerName") == self._name and key not in self._assumed:
            queued = self._queue.setdefault(key, _Queued(key))
            if before is not None and _wakes(before, after):
                queued.asleep, queued.ready_at = False, 0.0
        self._wake.set()

    def _count(self, key: store.Key, pod: store.Object | None) -> None:
        """Update the sums of the requests of bound pods per node."""
        before = self._counted.pop(key, None)
        if before is not None:
            for name, amount in before[1].items():
                self._used[before[0]][name] -= amount
        if pod is None or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return
        node, wants = pod["spec"]["nodeName"], _requests(pod)
        self._counted[key] = (node, wants)
        sums = self._used.setdefault(node, {})
        for name, amount in wants.items():
            sums[name] = sums.get(name, 0) + amount

    async def _loop(self) -> None:
        while True:
            now = time.monotonic()
            ready = [queued for queued in self._queue.values() if not queued.asleep and queued.ready_at <= now]
            if not ready:
                self._wake.clear()
                waiting = [queued.ready_at - now for queued in self._queue.values() if not queued.asleep]
                try:
                    async with asyncio.timeout(max(min(waiting, default=60.0), 0.005)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            for queued in sorted(ready, key=self._order):
                await self._schedule(queued)

    def _order(self, queued: _Queued) -> tuple[int, str]:
        pod = self._store.get(kinds.PODS, *queued.key) if queued.key in self._queue else None
        return (-(pod["spec"].get("priority") or 0), pod["metadata"]["creationTimestamp"]) if pod else (0, "")

    async def _schedule(self, queued: _Queued) -> None:
        try:
            pod = self._store.get(kinds.PODS, *queued.key)
        except store.ApiError:
            return
        if queued.key not in self._queue:
            return
        queued.attempts += 1
        try:
            node = await self._choose(pod)
        except OSError as broken:
            self._later(queued, pod, f"extender: {broken}")
            return
        if isinstance(node, dict):
            total = sum(1 for _ in self._store.all(kinds.NODES))
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(node.items(), key=lambda r: -r[1]))
            queued.asleep = True
            self._later(queued, pod, f"0/{total} nodes are available: {reasons}.")
            return
        self._queue.pop(queued.key, None)
        self._assumed[queued.key] = node
        self._count(queued.key, {**pod, "spec": {**pod["spec"], "nodeName": node}})
        task = asyncio.create_task(self._bind(queued, pod, node))
        self._binding.add(task)
        task.add_done_callback(self._binding.discard)

    async def _choose(self, pod: store.Object) -> str | dict[str, int]:
        """Return a node, or the number of nodes by reason of rejection."""
        reasons: dict[str, int] = {}
        names: list[str] = []
        wants = _requests(pod)
        for (_, name), node in self._store.all(kinds.NODES):
            reason = self._ruled_out(pod, wants, name, node)
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
            else:
                names.append(name)
        if not names or not _MANAGED & wants.keys():
            return names[0] if names else reasons
        self._random.shuffle(names)
        self.filter_calls += 1
        answer = await self._ask("filter", self.latencies.filter, {"Pod": pod, "Nodes": None, "NodeNames": names})
        if answer.get("Error"):
            raise OSError(answer["Error"])
        for failed in (answer.get("FailedNodes") or {}, answer.get("FailedAndUnresolvableNodes") or {}):
            for reason in failed.values():
                reasons[reason] = reasons.get(reason, 0) + 1
        left = answer.get("NodeNames") or []
        if len(left) <= 1:
            return left[0] if left else reasons
        scores = await self._ask("prioritize", self.latencies.prioritize, {"Pod": pod, "NodeNames": left})
        best = max(score["Score"] for score in scores)
        return str(self._random.choice([score["Host"] for score in scores if score["Score"] == best]))

    async def _bind(self, queued: _Queued, pod: store.Object, node: str) -> None:
        metadata = pod["metadata"]
        body = {
            "PodName": metadata["name"], "PodNamespace": metadata["namespace"], "PodUID": metadata["uid"], "Node": node,
        }  # fmt: skip
        try:
            if _MANAGED & _requests(pod).keys():
                failed = (await self._ask("bind", self.latencies.bind, body)).get("Error")
            else:
                failed = self._bind_alone(queued.key, node)
        except OSError as broken:
            failed = str(broken)
        if failed:
            self._assumed.pop(queued.key, None)
            self._count(queued.key, None)
            self._queue[queued.key] = queued
            self._later(queued, pod, failed)

    def _bind_alone(self, key: store.Key, node: str) -> str:
        """Bind a pod that requests no managed resource, as kube-scheduler does. Returns the refusal, or nothing."""
        try:
            current = self._store.get(kinds.PODS, *key)
            bound = pods.bound(current, key[1], {"target": {"name": node}})
            self._store.replace(kinds.PODS, key, current, bound)
        except store.ApiError as refused:
            return str(refused)
        return ""

    async def _ask(self, verb: str, latencies: list[float], body: Any) -> Any:
        started = time.perf_counter()
        try:
            return await asyncio.to_thread(self._extender.call, verb, body)
        finally:
            latencies.append(time.perf_counter() - started)

    def _later(self, queued: _Queued, pod: store.Object, message: str) -> None:
        """Write the reason on the pod, and queue it."""
        backoff = min(_FIRST_BACKOFF_SECONDS * 2 ** (queued.attempts - 1), _LONGEST_BACKOFF_SECONDS)
        queued.ready_at = time.monotonic() + backoff
        try:
            current = self._store.get(kinds.PODS, *queued.key)
        except store.ApiError:
            self._queue.pop(queued.key, None)
            return
        condition = {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": store.now(), "lastProbeTime": None,
        }  # fmt: skip
        others = [one for one in current["status"].get("conditions") or () if one["type"] != "PodScheduled"]
        status = {**current["status"], "conditions": [*others, condition]}
        self._store.replace(kinds.PODS, queued.key, current, {**current, "status": status})

    def _ruled_out(self, pod: store.Object, wants: dict[str, float], name: str, node: store.Object) -> str:
        spec = pod["spec"]
        if node["spec"].get("unschedulable") if "spec" in node else False:
            return "node(s) were unschedulable"
        labels = node["metadata"].get("labels") or {}
        if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
            return "node(s) didn't match Pod's node affinity/selector"
        taints = [t for t in (node.get("spec") or {}).get("taints") or () if t.get("effect") != "PreferNoSchedule"]
        if taints and not spec.get("tolerations"):
            return "node(s) had untolerated taints"
        allocatable = node["status"].get("allocatable") or {}
        used = self._used.get(name, {})
        for resource in _CHECKED:
            if used.get(resource, 0) + wants.get(resource, 0) > _amount(allocatable.get(resource, "0")):
                return f"Insufficient {resource}"
        return ""


def _wakes(before: store.Object, after: store.Object) -> bool:
    """Return whether kube-scheduler tries a pending pod again after this change of it."""
    fields = ("annotations", "labels")
    return before["spec"] != after["spec"] or any(
        before["metadata"].get(name) != after["metadata"].get(name) for name in fields
    )


@functools.lru_cache(maxsize=4096)
def _amount(text: Any) -> float:
    try:
        return float(quantities.count("", text))
    except errors.BadQuantity:
        return float(str(text).removesuffix("m") or 0) / 1000 if str(text).endswith("m") else 0.0


def _requests(pod: store.Object) -> dict[str, float]:
    """Return the most that the pod requests at one time."""
    spec = pod["spec"]
    apps = _sum(spec["containers"])
    sidecars: dict[str, float] = {}
    most: dict[str, float] = {}
    for container in spec.get("initContainers") or ():
        own = _sum([container])
        now = {name: own.get(name, 0) + sidecars.get(name, 0) for name in {*own, *sidecars}}
        if container.get("restartPolicy") == "Always":
            sidecars = now
        most = {name: max(most.get(name, 0), now.get(name, 0)) for name in {*most, *now}}
    lasting = {name: apps.get(name, 0) + sidecars.get(name, 0) for name in {*apps, *sidecars}}
    return {name: max(most.get(name, 0), lasting.get(name, 0)) for name in itertools.chain({*most, *lasting})}


def _sum(containers: Iterable[dict[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for container in containers:
        for name, value in ((container.get("resources") or {}).get("requests") or {}).items():
            total[name] = total.get(name, 0) + _amount(value)
    return total
