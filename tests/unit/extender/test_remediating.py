"""What remediation writes about nodes, what it requests of others, and which evicted pods run again."""

import asyncio
import json
import pathlib
from typing import Any

import msgspec
import orjson
import pytest

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import errors, identifiers, records, remediation_history, remediation_rules
from gpu_sharing.core.remediation import Act
from gpu_sharing.core.remediation_history import Entry
from gpu_sharing.core.remediation_rules import Action, Condition, Rule
from lab import gpus
from scheduler_extender import settings
from scheduler_extender.act import node_changes, node_writer
from scheduler_extender.act.migrations import Migrations
from scheduler_extender.fleet import facts
from scheduler_extender.serve import remediation_view
from tests.support.extender_world import A100, World, held, pod

NOW = 1_700_000_000.0
GPU = identifiers.GpuUuid("GPU-0")
NODE = identifiers.NodeName("a")


def act(action: Action, gpu: str = "", *releases: Entry) -> Act:
    rule = Rule(name="r", when=Condition(), action=action)
    return Act(node=NODE, gpu=identifiers.GpuUuid(gpu), rule=rule, cause="XID 79: lost", releases=releases)


def node(annotations: dict[str, str] | None = None, spec: Any = None) -> node_changes.Node:
    metadata = {"name": "a", "uid": "u", "resourceVersion": "7", "annotations": annotations or {}}
    return msgspec.convert({"metadata": metadata, "spec": spec or {}}, node_changes.Node)


def patched(of: node_changes.Node, done: Act) -> dict[str, Any]:
    known = remediation_history.decode((of.metadata.annotations or {}).get(remediation_history.ANNOTATION, ""))
    change = node_changes.patch(of, done, known, NOW)
    assert change is not None
    assert (change["metadata"]["resourceVersion"], change["metadata"]["uid"]) == ("7", "u")
    return {**change["metadata"]["annotations"], **change.get("spec", {})}


def history_of(entry: Entry) -> str:
    return remediation_history.encode((entry,)) or ""


@pytest.mark.parametrize(
    ("action", "gpu", "key", "before", "after"),
    [
        (Action.CORDON_GPU, GPU, records.CORDON, "GPU-9, GPU-8", "GPU-9,GPU-8,GPU-0"),
        (Action.REQUEST_RESET, GPU, remediation_history.REQUEST, "reboot", "reboot,reset GPU-0"),
        (Action.REQUEST_REBOOT, "", remediation_history.REQUEST, "", "reboot"),
    ],
)
def test_an_act_adds_to_what_others_wrote_and_its_release_leaves_just_that(
    action: Action, gpu: str, key: str, before: str, after: str
) -> None:
    """The annotation of cordons is the administrator's too."""
    done = patched(node({key: before}), act(action, gpu))
    assert done[key] == after
    (entry,) = remediation_history.decode(done[remediation_history.ANNOTATION])
    assert (entry.action, entry.gpu, entry.times, entry.holds) == (action, gpu, (int(NOW),), True)

    written = node({key: after, remediation_history.ANNOTATION: done[remediation_history.ANNOTATION]})
    released = patched(written, act(Action.RELEASE, gpu, entry))
    assert (released[key] or "").replace(",", ", ") == before
    (left,) = remediation_history.decode(released[remediation_history.ANNOTATION])
    assert (left.holds, left.times) == (False, (int(NOW),))


def test_taints_of_others_keep_all_their_fields() -> None:
    """A taint without its time would evict its pods anew."""
    foreign = {"key": "x", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}
    done = patched(node(spec={"taints": [foreign]}), act(Action.TAINT_NODE))
    own = {"key": remediation_history.TAINT, "value": "r", "effect": "NoSchedule"}
    assert done["taints"] == [foreign, own]

    (entry,) = remediation_history.decode(done[remediation_history.ANNOTATION])
    text = {remediation_history.ANNOTATION: done[remediation_history.ANNOTATION]}
    assert patched(node(text, {"taints": [foreign, own]}), act(Action.RELEASE, "", entry))["taints"] == [foreign]
    assert patched(node(text, {"taints": [own]}), act(Action.RELEASE, "", entry))["taints"] is None


def test_a_node_is_cordoned_and_uncordoned() -> None:
    assert patched(node(), act(Action.CORDON_NODE))["unschedulable"] is True
    entry = Entry(action=Action.CORDON_NODE, rule="r", times=(1,), holds=True)
    text = {remediation_history.ANNOTATION: history_of(entry)}
    assert patched(node(text), act(Action.RELEASE, "", entry))["unschedulable"] is None


def test_an_eviction_writes_its_history_alone() -> None:
    assert set(patched(node(), act(Action.EVICT_PODS, GPU))) == {remediation_history.ANNOTATION}


def test_an_act_that_another_process_did_in_the_meantime_is_not_repeated() -> None:
    """Two leaders overlap for a moment; the node says who was first."""
    theirs = history_of(Entry(action=Action.CORDON_GPU, gpu=GPU, rule="r", times=(int(NOW) - 1,), holds=True))
    later = node({remediation_history.ANNOTATION: theirs})

    assert node_changes.patch(later, act(Action.CORDON_GPU, GPU), (), NOW) is None
    assert node_changes.patch(later, act(Action.CORDON_GPU, "GPU-1"), (), NOW) is not None


class Client:
    """Answers what it is told to, and keeps what is written."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.written: list[tuple[str, Any]] = []

    async def get(self, path: str, kind: type[Any], timeout_seconds: float) -> Any:
        del timeout_seconds
        if "/pods" in path:
            self.written.append((path, None))
            ending = {"metadata": {"name": "b", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
            return msgspec.convert({"items": [{"metadata": {"name": "a"}}, ending]}, kind)
        return node()

    async def post(self, path: str, body: bytes, timeout_seconds: float) -> bytes:
        del timeout_seconds
        self.written.append((path, orjson.loads(body)))
        if self.refusals:
            raise self.refusals.pop(0)
        return b"{}"

    patch = patch_items = post


def writer(client: Any) -> node_writer.NodeWriter:
    return node_writer.NodeWriter(client)


def test_a_request_to_nvsentinel_has_one_name_until_it_is_recorded() -> None:
    """A process that is killed after it, and its successor, reset the GPU once."""
    client = Client()
    for known in ((), (), (Entry(action=Action.REQUEST_RESET, gpu=GPU, rule="r", times=(1,)),)):
        assert asyncio.run(writer(client).request_maintenance(act(Action.REQUEST_RESET, GPU), known))
    (path, first), (_, second), (_, third) = client.written
    assert path == "/apis/janitor.dgxc.nvidia.com/v1alpha1/gpuresets"
    assert first["spec"] == {"nodeName": "a", "selector": {"uuids": [GPU]}}
    assert first["metadata"]["name"] == second["metadata"]["name"] != third["metadata"]["name"]

    assert asyncio.run(writer(Client(errors.Conflict("exists"))).request_maintenance(act(Action.REQUEST_REBOOT), ()))
    gone = Client(errors.NotFound("no such API"))
    assert not asyncio.run(writer(gone).request_maintenance(act(Action.REQUEST_REBOOT), ()))
    assert gone.written[0][1]["kind"] == "RebootNode"
    assert gone.written[0][1]["spec"] == {"nodeName": "a", "force": False}


def test_a_write_that_comes_second_is_none() -> None:
    """The node's version is its precondition."""
    first = asyncio.run(writer(Client()).write(act(Action.CORDON_GPU, GPU), (), NOW))
    assert first is not None
    assert first[0].action is Action.CORDON_GPU
    assert asyncio.run(writer(Client(errors.Conflict("version"))).write(act(Action.CORDON_GPU, GPU), (), NOW)) is None


def test_only_the_mps_pods_that_run_are_restarted() -> None:
    client = Client()
    assert [one.metadata.name for one in asyncio.run(writer(client).mps_pods(NODE, "hami-system"))] == ["a"]
    assert asyncio.run(writer(client).mps_pods(NODE, ""))
    assert client.written[0][0].startswith("/api/v1/namespaces/hami-system/pods?labelSelector=")
    assert client.written[1][0].startswith("/api/v1/pods?")


# Migration.


def bound(name: str, index: int, node_name: str = "a", owner: str = "rs") -> dict[str, Any]:
    body = held(name, node_name, index, 4_000)
    body["metadata"]["ownerReferences"] = [{"uid": owner, "controller": True}]
    return body


def of(world: World, name: str) -> facts.BoundPod:
    return next(one for one in world.core.ledger.pods() if one.key == f"default/{name}")


def test_an_evicted_pod_is_migrated_once_its_owner_has_a_pod_on_another_gpu() -> None:
    """Its sibling, which ran before, is no successor; nor is a pod on the same broken GPU."""
    world = World(gpus.gpu_node("a", A100, 2))
    for one in (bound("old", 0), bound("sibling", 1)):
        world.see(one)
    migrations = Migrations(world.core.ledger, world.pending)
    migrations.begin(of(world, "old"), 0.0)
    migrations.begin(of(world, "old"), 0.0)

    assert migrations.step(1.0) == []
    assert [one.reason for one in migrations.under_way()] == ["its owner has not started another pod"]
    waiting = pod("new", {"nvidia.com/gpu": "1"})
    waiting["metadata"]["ownerReferences"] = [{"uid": "rs", "controller": True}]
    world.see(waiting)
    migrations.step(2.0)
    assert migrations.under_way()[0].reason == "default/new is pending"
    world.see(bound("same-gpu", 0))
    assert migrations.step(3.0) == []
    world.see(bound("new", 1))
    (ended,) = migrations.step(4.0)
    assert (ended.pod, ended.successor, ended.node) == ("default/old", "default/new", "a")
    assert migrations.under_way() == []


def test_a_migration_without_a_successor_ends_after_an_hour_and_unowned_pods_are_none() -> None:
    world = World(gpus.gpu_node("a", A100, 2))
    world.see(bound("old", 0))
    world.see(held("bare", "a", 1, 4_000))
    migrations = Migrations(world.core.ledger, world.pending)
    for name in ("old", "bare"):
        migrations.begin(of(world, name), 0.0)

    assert len(migrations.under_way()) == 1
    (ended,) = migrations.step(3601.0)
    assert ended.successor is None
    assert migrations.step(3602.0) == []


# Settings, and what the read API answers.


def test_a_file_of_rules_stops_the_start_with_every_mistake(tmp_path: pathlib.Path) -> None:
    """A controller without rules would look as if it watched over the GPUs."""
    path = tmp_path / "rules.json"

    def read(content: str) -> str:
        path.write_text(content)
        with pytest.raises(errors.SettingsError) as refused:
            settings.parse(["--remediation", "on", "--remediation-rules", str(path)], {})
        return str(refused.value)

    assert "SCHED_REMEDIATION_RULES" in read("{")
    assert "larger than 65536 bytes" in read(" " * 70_000)
    assert "SCHED_REMEDIATION_UNBOUNDED: rule r would do cordon-node" in read(
        '{"rules": [{"name": "r", "when": {}, "do": "cordon-node"}]}'
    )
    assert "and 10 more" in read(json.dumps({"rules": [{"name": "r", "when": {}, "do": "x"}] * 30}))
    path.write_text(json.dumps(remediation_rules.DEFAULTS))
    flags = ["--remediation", "dry-run", "--remediation-rules", str(path)]
    assert settings.parse(flags, {}).remediation_rules == remediation_rules.default()
    with pytest.raises(errors.SettingsError, match="No such file"):
        settings.parse(["--remediation-rules", str(tmp_path / "absent")], {})
    with pytest.raises(errors.SettingsError, match="not one of off, dry-run, on"):
        settings.parse(["--remediation", "yes"], {})


def test_a_replica_that_does_not_lead_shows_what_the_nodes_say() -> None:
    entry = Entry(action=Action.CORDON_GPU, gpu=gpus.gpu_uuid("a", 0), rule="r", times=(1,), holds=True)
    body = gpus.gpu_node("a", A100, 1, annotations={remediation_history.ANNOTATION: history_of(entry)})
    world = World(body, remediation="on")

    answer = remediation_view.view(world.core, None)
    assert (answer.mode, answer.leading, answer.acts) == ("on", False, [])
    assert answer.history == [
        read_api_types.RemediationEntry(node="a", gpu=entry.gpu, action="cordon-gpu", rule="r", times=[1], holds=True)
    ]
    assert remediation_view.view(World(body).core, None) == read_api_types.Remediation()
