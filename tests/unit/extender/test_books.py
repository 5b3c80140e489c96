"""The ledger balance under any interleaving: binds, deletions, duplicates, lost answers, watch gaps and restarts."""

import asyncio
import copy
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers, records
from lab import gpus
from scheduler_extender.act import binding, leadership
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.metrics import Metrics
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import server
from scheduler_extender.settings import Settings
from tests.support import accounting, fakes, searching
from tests.support.extender_world import bind_call

NODES = ["node-a", "node-b"]
SMALL = gpus.Model("NVIDIA A100", 10_000)
LIMITS = [
    {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000", "nvidia.com/gpucores": "40"},
    {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "6000"},
    {"nvidia.com/gpu": "2", "nvidia.com/gpumem": "3000"},
    {"nvidia.com/gpu": "1"},
    {"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "30", "nvidia.com/gpucores": "30"},
]


MOST_MIB = 20_000
QUOTA = msgspec.convert(
    {
        "metadata": {"name": "ours", "namespace": "default"},
        "spec": {"hard": {"limits.nvidia.com/gpumem": str(MOST_MIB)}},
    },
    objects.ResourceQuota,
)


class Books(RuleBasedStateMachine):
    """A cluster whose watch is late, whose answers get lost and whose extender dies."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.api = fakes.FakeApi()
        self.nodes = [gpus.gpu_node("node-a", SMALL, 2, slots=3), gpus.gpu_node("node-b", SMALL, 1, slots=3)]
        self.count = 0
        self.last_seen: tuple[str, dict[str, Any]] | None = None
        self.begun: tuple[float, list[objects.Pod], int] | None = None

    @initialize()
    def start(self) -> None:
        """An extender that has just listed."""
        self.core = DecisionCore(Settings(), Metrics())
        self.mirror, self.placer = self.core.mirror, self.core.placer
        list(self.mirror.quotas.replaced([QUOTA], 0.0))
        for node in self.nodes:
            self.mirror.see_node(msgspec.convert(node, objects.Node))
        self.api.stream.clear()
        list(self.mirror.replace_pods(self.api.objects(), self.loop.time()))
        decision_events = DecisionEvents(self.core, fakes.SilentRecorder(), lambda: False)
        client: Any = self.api
        self.binder = binding.Binder(client, self.core, decision_events, lambda: True)
        self.server = server.VerbServer(self.core, self.binder, decision_events, lambda: None)
        self.last_seen = self.begun = None

    @rule()
    def crash(self) -> None:
        """SIGKILL and a new process: everything is read anew."""
        self.start()

    @rule(limits=st.sampled_from(LIMITS))
    def create(self, limits: dict[str, str]) -> None:
        self.count += 1
        self.api.put({
            "metadata": {"name": f"p{self.count}", "namespace": "default", "uid": f"uid-{self.count}"},
            "spec": {"schedulerName": "hami-scheduler", "containers": [{"name": "c", "resources": {"limits": limits}}]},
            "status": {"phase": "Pending"},
        })  # fmt: skip

    @precondition(lambda self: self.api.pods)
    @rule(data=st.data(), lost=st.sampled_from(["", "", "", "answer", "request"]), ask_scores=st.booleans())
    def schedule(self, data: st.DataObject, lost: str, ask_scores: bool) -> None:
        """What kube-scheduler does, from its own view, which may be newer or older than ours."""
        pod = data.draw(st.sampled_from(list(self.api.pods.values())))
        body = orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": NODES})
        left = orjson.loads(self.server.filter(body)[0])["NodeNames"]
        if not left:
            return
        if ask_scores:
            self.server.prioritize(orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": left}))
        self.bind(pod, data.draw(st.sampled_from(left)), lost)

    @precondition(lambda self: self.api.pods)
    @rule(data=st.data(), node=st.sampled_from(NODES), lost=st.sampled_from(["", "answer", "request"]))
    def bind_out_of_the_blue(self, data: st.DataObject, node: str, lost: str) -> None:
        """A bind that no filter of this process preceded, or a repeated one."""
        self.bind(data.draw(st.sampled_from(list(self.api.pods.values()))), node, lost)

    @precondition(lambda self: len(self.api.pods) > 1)
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def two_binds_at_once(self, data: st.DataObject, node: str) -> None:
        """They overlap, and may be for the same pod."""
        pods = [data.draw(st.sampled_from(list(self.api.pods.values()))) for _ in range(2)]
        calls = [bind_call(pod, node) for pod in pods]

        async def both() -> None:
            await asyncio.gather(*(self.binder.bind(one) for one in calls))

        self.loop.run_until_complete(both())

    def bind(self, pod: dict[str, Any], node: str, lost: str) -> None:
        self.api.loses = [lost]
        outcome = self.loop.run_until_complete(self.binder.bind(bind_call(pod, node)))
        self.api.loses = []
        if not outcome.code:
            now = self.api.pods[pod["metadata"]["name"]]
            assert now["spec"]["nodeName"] == node
            assert now["metadata"]["annotations"][records.ALLOCATED]

    @precondition(lambda self: self.api.pods)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.api.delete(data.draw(st.sampled_from(sorted(self.api.pods))))

    @precondition(lambda self: self.api.pods)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        pod = dict(self.api.pods[data.draw(st.sampled_from(sorted(self.api.pods)))])
        if pod["spec"].get("nodeName"):
            self.api.put({**pod, "status": {"phase": "Succeeded"}, "metadata": dict(pod["metadata"])})

    @precondition(lambda self: self.api.pods)
    @rule(data=st.data(), node=st.sampled_from(NODES), how=st.sampled_from(["nominated", "kept", "closed", "neither"]))
    def somebody_keeps_room_for(self, data: st.DataObject, node: str, how: str) -> None:
        """A controller or kube-scheduler says where a pending pod is expected, or takes that back."""
        pod = copy.deepcopy(data.draw(st.sampled_from(list(self.api.pods.values()))))
        if pod["spec"].get("nodeName"):
            return
        reserved_gpus = frozenset([gpus.gpu_uuid(node, 0)]) if how == "closed" else frozenset()
        hold = records.encode_hold(records.Hold(identifiers.NodeName(node), reserved_gpus, 2**40))
        pod["metadata"]["annotations"] = {records.HOLD: hold} if how in ("kept", "closed") else {}
        pod["status"] = {"phase": "Pending", **({"nominatedNodeName": node} if how == "nominated" else {})}
        self.api.put(pod)

    @precondition(lambda self: self.api.stream and self.begun is None)
    @rule(count=st.integers(1, 4))
    def watch_catches_up_a_little(self, count: int) -> None:
        for _ in range(min(count, len(self.api.stream))):
            self.last_seen = self.api.stream.pop(0)
            self.deliver(*self.last_seen)

    @precondition(lambda self: self.last_seen)
    @rule()
    def watch_repeats_itself(self) -> None:
        """As after a reconnect from a version that was not the last."""
        assert self.last_seen is not None
        self.deliver(*self.last_seen)

    @precondition(lambda self: self.begun is None)
    @rule()
    def watch_breaks_and_a_list_begins(self) -> None:
        """The API server takes its snapshot now; until it has been read, nothing is watched."""
        self.begun = (self.loop.time(), self.api.objects(), self.api.told)
        self.last_seen = None

    @precondition(lambda self: self.begun)
    @rule()
    def the_list_ends(self) -> None:
        """It may be older than binds that were answered meanwhile. The watch goes on from it."""
        assert self.begun is not None
        began_at, found, told = self.begun
        self.begun = None
        list(self.mirror.replace_pods(found, began_at))
        self.api.stream = self.api.since(told)

    @precondition(lambda self: self.api.pods and self.begun is None)
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def a_bind_overtakes_a_list(self, data: st.DataObject, node: str) -> None:
        """The two rules above with a bind between them, which chance alone seldom brings about."""
        self.watch_breaks_and_a_list_begins()
        self.bind(data.draw(st.sampled_from(list(self.api.pods.values()))), node, "")
        self.the_list_ends()

    def deliver(self, kind: str, pod: dict[str, Any]) -> None:
        seen = msgspec.convert(pod, objects.Pod)
        if kind == "DELETED":
            self.mirror.pods.deleted(seen)
        else:
            self.mirror.pods.changed(seen)

    @invariant()
    def no_gpu_is_ever_oversubscribed(self) -> None:
        """By the API objects alone: pods that have ended hold nothing."""
        live = [pod for pod in self.api.pods.values() if pod["status"]["phase"] != "Succeeded"]
        assert accounting.violations(self.nodes, live) == []

    @invariant()
    def no_namespace_is_ever_over_its_quota(self) -> None:
        """Likewise by the API objects alone."""
        live = [pod for pod in self.api.pods.values() if pod["status"]["phase"] != "Succeeded"]
        assert sum(mib for pod in live for held in accounting.devices(pod) for _, mib, _ in held) <= MOST_MIB

    def teardown(self) -> None:
        """Once the watch has caught up, the ledger is what a new one would be."""
        if not hasattr(self, "mirror"):
            self.loop.close()
            return
        if self.begun:
            self.the_list_ends()
        for kind, pod in self.api.stream:
            self.deliver(kind, pod)
        anew = Mirror(Settings(), Metrics())
        for node in self.nodes:
            anew.see_node(msgspec.convert(node, objects.Node))
        list(anew.replace_pods(self.api.objects(), 0.0))
        for name in NODES:
            assert self.mirror.ledger.allocated_on(name) == anew.ledger.allocated_on(name)  # type: ignore[arg-type]
        for ledger in (self.mirror.ledger, anew.ledger):
            ledger.expire(float("inf"))  # Nominations are no facts.
        for name in NODES:
            assert self.mirror.ledger.settled(name) == anew.ledger.settled(name)  # type: ignore[arg-type]
        assert self.mirror.ledger.quotas.held("default") == anew.ledger.quotas.held("default")
        assert set(self.mirror.pending.uids()) == set(anew.pending.uids())
        self.loop.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in real time is over at once here."""
    monkeypatch.setattr(leadership, "BINDING_TIMEOUT_SECONDS", 0.0)


TestBooks = pytest.mark.slow(pytest.mark.usefixtures("_no_waiting")(Books.TestCase))
Books.TestCase.settings = settings(max_examples=searching.examples(100), stateful_step_count=50)


def test_the_watchs_word_of_our_own_bind_is_no_news() -> None:
    """Nothing was freed by it, so nobody has to be read again."""
    ledger = Books()
    ledger.start()
    ledger.create(limits=LIMITS[0])
    (pod,) = ledger.api.pods.values()
    pod["spec"]["priority"] = 7
    pod["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "2", "memory": "1Gi"}
    pod["metadata"]["annotations"] = {"hami.io/gang-size": "", "hami.io/gang": ""}
    ledger.api.put(pod)
    ledger.watch_catches_up_a_little(count=4)
    ledger.bind(pod, "node-a", "")
    generation = ledger.mirror.ledger.generation

    ledger.watch_catches_up_a_little(count=4)

    assert ledger.mirror.ledger.generation == generation
    ledger.teardown()


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("lost", ["", "answer"])
def test_a_list_that_began_before_a_bind_does_not_undo_it(lost: str) -> None:
    """The same as a story, because chance does not tell it in every run."""
    ledger = Books()
    ledger.start()
    for _ in range(2):
        ledger.create(limits=LIMITS[3])
    first, second = ledger.api.pods.values()
    ledger.watch_breaks_and_a_list_begins()
    ledger.bind(first, "node-b", lost)
    ledger.the_list_ends()

    ledger.bind(second, "node-b", "")

    ledger.no_gpu_is_ever_oversubscribed()
    ledger.teardown()
