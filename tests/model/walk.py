"""One random walk of the real mirror, ledger, verbs and binder through the cluster in memory.

After every step what the API server holds is added up without any code of the extender's; at the end of a walk, when
all calls are answered and all events seen, the extender must know what a new one would know, and nothing else.

`python -m tests.model.walk --steps N --seed S` walks for longer, and one seed again.
"""

import argparse
import asyncio
import copy
import logging
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers, records
from lab import gpus
from scheduler_extender.act import binding, leadership
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import wake_order
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import server
from scheduler_extender.settings import Settings
from tests.model import cluster
from tests.support import accounting, fakes
from tests.support.extender_world import bind_call

STEPS_A_WALK = 120
NODES = ("node-a", "node-b", "node-c")
MODEL = gpus.Model("NVIDIA A100", 10_000)
LIMITS = (
    {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000", "nvidia.com/gpucores": "40"},
    {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "6000"},
    {"nvidia.com/gpu": "2", "nvidia.com/gpumem": "3000"},
    {"nvidia.com/gpu": "1"},
)


class Violation(Exception):
    """Something that must never be so."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Walk:
    """An extender, its API server, and what may happen to both."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.choose = random.Random(seed)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._loop_failed)
        self.clock = Clock()
        self.hardware = [gpus.gpu_node(name, MODEL, 1 + (name == "node-a"), slots=3) for name in NODES]
        self.api = cluster.ApiServer([copy.deepcopy(node) for node in self.hardware])
        self.count = 0
        self.story: list[str] = []
        self.failed: list[str] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.start()

    def start(self) -> None:
        """A new extender that has just listed."""
        self.core = DecisionCore(Settings(), Metrics(), self.clock)
        self.metrics, self.mirror = self.core.metrics, self.core.mirror
        decision_events = DecisionEvents(self.core, fakes.SilentRecorder(), lambda: False)
        client: Any = self.api
        self.binder = binding.Binder(client, self.core, decision_events, lambda: True)
        self.server = server.VerbServer(self.core, self.binder, decision_events, lambda: None)
        self.steps_of_list: Iterator[None] | None = None
        self.list_began_at: float | None = None
        self.listed: list[objects.Pod] | None = None
        self.api.pod_events.clear()
        self.api.node_events.clear()
        for node in self.api.nodes.values():
            self.mirror.nodes.changed(msgspec.convert(node, objects.Node))
        for _ in self.mirror.pods.replaced(self.api.snapshot(), self.clock.now):
            pass

    # The walk.

    def run(self, steps: int) -> None:
        """Take the steps, then let everything come to rest.

        Raises:
            Violation: With the walk that led there.
        """
        actions = [action for action, weight in self._actions().items() for _ in range(weight)]
        try:
            for _ in range(steps):
                self.step(self.choose.choice(actions))
            self.come_to_rest()
        except Violation as violation:
            raise Violation(
                f"{violation}\nseed {self.seed}; the last steps:\n  " + "\n  ".join(self.story[-40:])
            ) from violation
        finally:
            self._end_tasks()
            self.loop.close()

    def step(self, action: Callable[[], str | None]) -> None:
        self.clock.now += 0.01
        try:
            told = action()
        except Exception as defect:
            raise Violation(f"the process ends: {action.__name__}: {defect!r}") from defect
        if told is None:
            return
        self.story.append(f"{action.__name__} {told}".rstrip())
        self._let_run()
        self.check()

    def check(self) -> None:
        if self.failed:
            raise Violation(self.failed[0])
        if self.metrics.set_aside._value.get():
            raise Violation("an object is set aside, and all objects here are sound")
        live = [pod for pod in self.api.pods.values() if pod["status"]["phase"] != "Succeeded"]
        found = accounting.violations(self.hardware, live)
        if found:
            raise Violation("; ".join(found))

    def come_to_rest(self) -> None:
        """Answer every call, deliver every event, resolve every doubt; then compare with a new extender."""
        for _ in range(200):
            for call in list(self.api.calls):
                if call.outcome is None:
                    self.api.do(call)
                self.api.answer(call, "as it is")
            if self.list_began_at is not None:
                self.list_arrives()
                while self.steps_of_list is not None:
                    self.the_list_is_taken_in()
            while self.api.pod_events or self.api.node_events:
                self.pods_are_watched()
                self.nodes_are_watched()
            if self.mirror.in_doubt:
                self._spawn(self.binder.reader.resolve())
            self._let_run()
            if not (self.api.calls or self.tasks or self.mirror.in_doubt):
                break
        self.check()
        if self.tasks or self.api.calls:
            raise Violation("binds never end")
        self._compare_with_anew()

    def _compare_with_anew(self) -> None:
        ledger = self.mirror.ledger
        anew = Mirror(Settings(), Metrics(), self.clock)
        for node in self.api.nodes.values():
            anew.nodes.changed(msgspec.convert(node, objects.Node))
        for _ in anew.pods.replaced(self.api.snapshot(), 0.0):
            pass
        if ledger.assumed_count:
            raise Violation("a bind is assumed for ever")
        for one in (ledger, anew.ledger):
            one.expire(float("inf"))
        for name in map(identifiers.NodeName, NODES):
            if ledger.allocated_on(name) != anew.ledger.allocated_on(name):
                raise Violation(
                    f"{name} is {ledger.allocated_on(name)}, and a new extender finds {anew.ledger.allocated_on(name)}"
                )
            if ledger.settled(name) != anew.ledger.settled(name):
                raise Violation(f"{name} is settled otherwise than by a new extender")
        if set(self.mirror.pending.uids()) != set(anew.pending.uids()):
            raise Violation(f"pending: {set(self.mirror.pending.uids()) ^ set(anew.pending.uids())}")
        fits = [ledger.settle().column_of.keys(), anew.ledger.settle().column_of.keys()]
        if set(fits[0]) != set(fits[1]):
            raise Violation("the arrays know other nodes than a new extender's")

    # What may happen.

    def _actions(self) -> dict[Callable[[], str | None], int]:
        return {
            self.create: 6, self.delete: 3, self.finish: 1, self.nominate: 4,
            self.schedule: 8, self.bind_unasked: 4,
            self.the_server_does_a_call: 10, self.a_call_is_answered: 10,
            self.pods_are_watched: 8, self.nodes_are_watched: 4,
            self.a_node_goes: 1, self.a_node_comes: 3,
            self.a_list_begins: 2, self.the_list_is_read: 4, self.list_arrives: 4, self.the_list_is_taken_in: 12,
            self.doubts_are_resolved: 2, self.refused_pods_are_woken: 2, self.time_passes: 2, self.crash: 1,
        }  # fmt: skip

    def create(self) -> str | None:
        if len(self.api.pods) >= 8:
            return None
        self.count += 1
        name = f"p{self.count}"
        self.api.put(
            {
                "metadata": {"name": name, "namespace": "default", "uid": f"uid-{self.count}", "annotations": {}},
                "spec": {
                    "schedulerName": "hami-scheduler",
                    "priority": self.choose.choice((0, 0, 5)),
                    "containers": [{"name": "c", "resources": {"limits": dict(self.choose.choice(LIMITS))}}],
                },
                "status": {"phase": "Pending"},
            }
        )
        return name

    def delete(self) -> str | None:
        pod = self._some_pod()
        if pod is None:
            return None
        self.api.delete(pod["metadata"]["name"])
        return str(pod["metadata"]["name"])

    def finish(self) -> str | None:
        pod = self._some_pod(bound=True)
        if pod is None:
            return None
        self.api.put({**copy.deepcopy(pod), "status": {"phase": "Succeeded"}})
        return str(pod["metadata"]["name"])

    def nominate(self) -> str | None:
        pod = self._some_pod(bound=False)
        if pod is None:
            return None
        node = self.choose.choice((*NODES, ""))
        self.api.put({**copy.deepcopy(pod), "status": {"phase": "Pending", "nominatedNodeName": node}})
        return f"{pod['metadata']['name']} to {node or 'nowhere'}"

    def schedule(self) -> str | None:
        pod = self._some_pod(bound=False)
        if pod is None:
            return None
        body = orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": NODES})
        left = orjson.loads(self.server.filter(body)[0])["NodeNames"]
        name = pod["metadata"]["name"]
        if not left:
            return f"{name}: refused"
        if self.choose.random() < 0.7:
            self.server.prioritize(orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": left}))
        node = self.choose.choice(left)
        self._bind(pod, node)
        return f"{name} to {node}"

    def bind_unasked(self) -> str | None:
        """No filter of this process came before, and the mirror may not know the pod yet."""
        pod = self._some_pod()
        if pod is None:
            return None
        node = self.choose.choice(NODES)
        self._bind(pod, node)
        return f"{pod['metadata']['name']} to {node}"

    def the_server_does_a_call(self) -> str | None:
        waiting = [call for call in self.api.calls if call.outcome is None]
        if not waiting:
            return None
        call = self.choose.choice(waiting)
        if self.choose.random() < 0.15:
            how = self.choose.choice(("lost", "garbled"))
            self.api.answer(call, how)
            return f"{call.method} {call.pod}: not done, {how}"
        self.api.do(call)
        return f"{call.method} {call.pod}"

    def a_call_is_answered(self) -> str | None:
        done = [call for call in self.api.calls if call.outcome is not None]
        if not done:
            return None
        call = self.choose.choice(done)
        how = self.choose.choice(("as it is", "as it is", "as it is", "lost", "garbled"))
        self.api.answer(call, how)
        return f"{call.method} {call.pod} {how}"

    def pods_are_watched(self) -> str | None:
        """Nothing is watched while a list is under way; the watch goes on from the list."""
        if not self.api.pod_events or self.list_began_at is not None:
            return None
        shown = []
        for _ in range(self.choose.randint(1, 4)):
            if self.api.pod_events:
                kind, body = self.api.pod_events.pop(0)
                seen = msgspec.convert(body, objects.Pod)
                sink = self.mirror.pods
                sink.deleted(seen) if kind == "DELETED" else sink.changed(seen)
                shown.append(f"{kind} {seen.metadata.name} {seen.spec.node_name}")
        return ", ".join(shown)

    def nodes_are_watched(self) -> str | None:
        if not self.api.node_events:
            return None
        kind, body = self.api.node_events.pop(0)
        seen = msgspec.convert(body, objects.Node)
        sink = self.mirror.nodes
        sink.deleted(seen) if kind == "DELETED" else sink.changed(seen)
        return f"{kind} {seen.metadata.name}"

    def a_node_goes(self) -> str | None:
        if len(self.api.nodes) < 2:
            return None
        name: str = self.choose.choice(sorted(self.api.nodes))
        self.api.delete_node(name)
        return name

    def a_node_comes(self) -> str | None:
        gone = [node for node in self.hardware if node["metadata"]["name"] not in self.api.nodes]
        if not gone:
            return None
        node = copy.deepcopy(self.choose.choice(gone))
        self.api.put_node(node)
        return str(node["metadata"]["name"])

    def a_list_begins(self) -> str | None:
        if self.list_began_at is not None:
            return None
        self.list_began_at = self.clock.now
        return ""

    def the_list_is_read(self) -> str | None:
        """The server takes its snapshot; the watch will go on from here."""
        if self.list_began_at is None or self.listed is not None or self.steps_of_list is not None:
            return None
        self.listed = self.api.snapshot()
        self.api.pod_events.clear()
        return ", ".join(pod.metadata.name for pod in self.listed)

    def list_arrives(self) -> str | None:
        if self.list_began_at is None or self.steps_of_list is not None:
            return None
        if self.listed is None:
            self.the_list_is_read()
        assert self.listed is not None
        self.steps_of_list = self.mirror.pods.replaced(self.listed, self.list_began_at)
        self.listed = None
        return ""

    def the_list_is_taken_in(self) -> str | None:
        if self.steps_of_list is None:
            return None
        for _ in range(self.choose.randint(1, 12)):
            if next(self.steps_of_list, "end") == "end":
                self.steps_of_list = self.list_began_at = None
                return "to its end"
        return ""

    def doubts_are_resolved(self) -> str | None:
        if not self.mirror.in_doubt or self.tasks:
            return None
        self._spawn(self.binder.reader.resolve())
        return ", ".join(self.mirror.in_doubt)

    def refused_pods_are_woken(self) -> str | None:
        return ", ".join(pod.key for pod in wake_order.pods_to_wake(self.core) if pod is not None)

    def time_passes(self) -> str | None:
        """Nominations expire."""
        self.clock.now += self.choose.choice((1.0, 10.0))
        self.mirror.ledger.expire(self.clock.now)
        return ""

    def crash(self) -> str | None:
        self._end_tasks()
        self.api.calls.clear()
        self.start()
        return ""

    # How it is done.

    def _some_pod(self, *, bound: bool | None = None) -> dict[str, Any] | None:
        pods = [
            pod
            for _, pod in sorted(self.api.pods.items())
            if pod["status"]["phase"] == "Pending" and (bound is None or bool(pod["spec"].get("nodeName")) is bound)
        ]
        return self.choose.choice(pods) if pods else None

    def _bind(self, pod: dict[str, Any], node: str) -> None:
        self._spawn(self._bound(bind_call(pod, node)))

    async def _bound(self, call: binding.BindCall) -> None:
        outcome = await self.binder.bind(call)
        name = call.key.partition("/")[2]
        now = self.api.pods.get(name)
        if outcome.code or now is None:
            return
        if now["spec"].get("nodeName") != call.node or not now["metadata"]["annotations"].get(records.ALLOCATED):
            self.failed.append(f"bind of {name} to {call.node} answers success, and nothing was written")

    def _spawn(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        if (
            not task.cancelled()
            and (defect := task.exception()) is not None
            and not isinstance(defect, UnicodeDecodeError)
        ):
            self.failed.append(f"a call ends with {defect!r}")

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        self.failed.append(f"on the loop: {context.get('exception') or context['message']}")

    def _let_run(self) -> None:
        async def turns() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def _end_tasks(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self._let_run()


def walk_all(steps: int, seed: int = 0, tell: Callable[[int], None] = lambda done: None) -> int:
    """Walk from one seed after another until so many steps are taken. Returns the steps.

    Raises:
        Violation: The first that is found.
    """
    was = leadership.BINDING_TIMEOUT_SECONDS, binding._FIND_OUT_BACKOFF_SECONDS
    logged = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    leadership.BINDING_TIMEOUT_SECONDS = binding._FIND_OUT_BACKOFF_SECONDS = 0.0
    done = 0
    try:
        while done < steps:
            Walk(seed).run(STEPS_A_WALK)
            done += STEPS_A_WALK
            seed += 1
            tell(done)
    finally:
        leadership.BINDING_TIMEOUT_SECONDS, binding._FIND_OUT_BACKOFF_SECONDS = was
        structlog.configure(**logged)
    return done


def main() -> int:
    """Walk, and print how far it came."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.walk", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="how many steps to take (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first walk (default 0)")
    arguments = parser.parse_args()

    def tell(done: int) -> None:
        if done % 12_000 == 0:
            print(f"{done} of {arguments.steps} steps", file=sys.stderr, flush=True)

    try:
        print(f"{walk_all(arguments.steps, arguments.seed, tell)} steps, no violation")
    except Violation as violation:
        print(violation)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
