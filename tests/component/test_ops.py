"""`hamictl ops` against an installation on the lab's API server: what it writes, refuses and rolls back."""

import argparse
import asyncio
import base64
import gzip
import json
import pathlib
import stat
import time
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import records
from hamictl import failures
from hamictl.operations import images, installed, update
from lab import api_server, faults, kinds
from tests.component import calls, ops_world
from tests.component.ops_world import APPS, IMAGE, NAMESPACE, NODE_IMAGE, World

pytestmark = pytest.mark.slow

CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"


@pytest.fixture
def world(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[World]:
    with ops_world.running(tmp_path, monkeypatch, capsys) as found:
        yield found


def failed_pod(
    world: World, name: str, *, hours: float, namespace: str = "default", gpu: bool = True, **status: Any
) -> None:
    limits = {"nvidia.com/gpu": "1"} if gpu else {"cpu": "1"}
    containers = [{"name": "c", "image": "i", "resources": {"limits": limits}}]
    path = f"/api/v1/namespaces/{namespace}/pods"
    world.server.request("POST", path, {"metadata": {"name": name}, "spec": {"containers": containers}})
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - hours * 3600))
    state = {"terminated": {"exitCode": 1, "finishedAt": ended}}
    store = world.server.app.store

    def end() -> None:
        ((key, pod),) = [pair for pair in store.all(kinds.PODS, namespace) if pair[0][1] == name]
        metadata = {**pod["metadata"], "creationTimestamp": ended}
        store.remove(kinds.PODS, key, pod)
        made = store.create(kinds.PODS, namespace, {**pod, "metadata": {"name": name}})
        made["metadata"]["creationTimestamp"] = metadata["creationTimestamp"]
        after = {"phase": "Failed", "containerStatuses": [{"name": "c", "state": state}], **status}
        store.replace(kinds.PODS, key, made, {**made, "status": after})

    world.server.call(end)


def pods(world: World, namespace: str = "default") -> list[str]:
    return [one["metadata"]["name"] for one in world.get(f"/api/v1/namespaces/{namespace}/pods")["items"]]


def release(values: dict[str, Any]) -> str:
    """Helm's record of a release, as in a Secret's data."""
    packed = base64.b64encode(gzip.compress(json.dumps({"config": values, "chart": {}}).encode()))
    return base64.b64encode(packed).decode()


# Every operation


@pytest.mark.parametrize("words", [
    ("scale", "2"), ("restart",), ("update", f"{IMAGE}:0.2.0"), ("cleanup", "--older-than", "1h"),
])  # fmt: skip
def test_nothing_is_written_without_a_confirmation(words: tuple[str, ...], world: World) -> None:
    """A script that forgets --yes, and a person who types n, must change nothing."""
    failed_pod(world, "old", hours=5)
    before = world.server.app.store.version

    unattended = world.run(*words)
    refused = world.run(*words, answer="n\n")

    assert (unattended.status, refused.status) == (1, 1)
    assert "OPS_NOT_CONFIRMED: there is no terminal" in unattended.err
    assert "--yes" in unattended.err
    assert "[y/N]" in refused.err
    assert "OPS_NOT_CONFIRMED: the answer was no" in refused.err
    assert (world.version(), pods(world), world.controllers.pods_seen) == ("1", ["old"], [])
    assert before <= world.server.app.store.version


@pytest.mark.parametrize("words", [
    ("scale", "2"), ("restart",), ("update", f"{IMAGE}:0.2.0"), ("cleanup", "--older-than", "1h"),
])  # fmt: skip
def test_a_dry_run_shows_the_change_and_writes_nothing(words: tuple[str, ...], world: World) -> None:
    """It needs no confirmation, and the API server has checked the write."""
    failed_pod(world, "old", hours=5)

    done = world.run(*words, "--dry-run")

    assert done.status == 0, done.err
    assert "dry run: " in done.out
    assert (world.version(), pods(world), world.controllers.pods_seen) == ("1", ["old"], [])


@pytest.mark.parametrize("words", [
    ("scale", "2", "--yes"), ("restart", "--yes"), ("update", f"{IMAGE}:0.2.0", "--yes"), ("cleanup", "--yes"),
    ("backup", "{folder}/new.json"), ("disk",), ("health", "--extender", "http://127.0.0.1:9"),
])  # fmt: skip
def test_a_missing_and_a_foreign_installation_are_refused(words: tuple[str, ...], world: World) -> None:
    """HAMi's own scheduler has the same name: it must not be scaled or restarted by a mistyped context."""
    words = tuple(word.format(folder=world.folder) for word in words)

    missing = world.run(*words, "--system-namespace", "default")
    theirs = ops_world.workload(
        "hami-scheduler", "hami-scheduler",
        [ops_world.container("vgpu-scheduler-extender", "docker.io/projecthami/hami:v2.10.0", command=["scheduler"])],
        replicas=1,
    )  # fmt: skip
    world.server.request("POST", "/apis/apps/v1/namespaces/default/deployments", theirs)
    foreign = world.run(*words, "--system-namespace", "default")

    assert (missing.status, foreign.status) == (1, 1)
    assert "OPS_NOT_INSTALLED: there is no Deployment hami-scheduler in namespace default" in missing.err
    assert "--system-namespace" in missing.err
    assert "OPS_FOREIGN_INSTALLATION" in foreign.err
    assert world.get("/apis/apps/v1/namespaces/default/deployments/hami-scheduler")["metadata"]["generation"] == 1


def test_an_api_server_that_does_not_answer_is_no_answer(world: World) -> None:
    """Status 2 with one sentence; no traceback."""
    world.server.app.faults.arm(faults.Fault("GET", "deployments", refuse_with=503))
    done = world.run("scale", "2", "--yes")

    assert done.status == 2
    assert "503" in done.err
    assert "Traceback" not in done.err
    assert world.version() == "1"


# Scale


def test_scaling_follows_the_rollout_to_its_end(world: World) -> None:
    """The command returns when the second replica serves, and says what Helm will do."""
    done = world.run("scale", "2", answer="y\n")

    assert done.status == 0, done.err
    assert world.get(f"{APPS}/deployments/hami-scheduler")["spec"]["replicas"] == 2
    assert "deployment/hami-scheduler: 1 -> 2 replicas" in done.out
    assert "deployment/hami-scheduler has 2 replicas: 2 of 2 pods available" in done.out
    assert "scheduler.replicas=2" in done.out
    again = world.run("scale", "2", "--yes")
    assert (again.status, again.out) == (0, "deployment/hami-scheduler has 2 replicas already\n")


def test_a_rollout_that_does_not_end_is_a_failure_with_its_last_state(world: World) -> None:
    """Else a nightly script would wait for ever."""
    calls.eventually(lambda: world.get(f"{APPS}/deployments/hami-scheduler").get("status"))
    world.controllers.idle = True

    done = world.run("scale", "2", "--yes", "--timeout", "0.2")

    assert done.status == 1
    assert (
        "OPS_ROLLOUT_FAILED: deployment/hami-scheduler: no progress within 0.2 s: the change is not yet read"
        in done.err
    )


@pytest.mark.parametrize("number", ["0", "11", "-1", "many", "٣", "1e9"])
def test_a_number_of_replicas_outside_the_limits_is_refused(number: str, world: World) -> None:
    """With 0 no pod with GPUs would be placed any more."""
    done = world.run("scale", "--yes", "--", number, cluster=False)

    assert done.status == 2
    assert "from 1 to 10" in done.err


def test_two_replicas_without_a_lease_are_refused(world: World) -> None:
    """Both would bind pods."""
    path = f"{APPS}/deployments/hami-scheduler"
    found = world.get(path)
    found["spec"]["template"]["spec"]["containers"][0]["args"] = ["scheduler_extender"]
    del found["metadata"]["resourceVersion"]
    world.server.request("PUT", path, found)

    done = world.run("scale", "2", "--yes")

    assert done.status == 1
    assert "OPS_NO_LEASE" in done.err
    assert world.get(path)["spec"]["replicas"] == 1


# Restart


def test_a_restart_of_all_goes_part_by_part_and_spares_the_clients_of_mps(world: World) -> None:
    """The scheduler first; MPS stays, because every client would end with its daemon."""
    done = world.run("restart", "--yes")

    assert done.status == 0, done.err
    order = [line.split(" is restarted")[0] for line in done.out.splitlines() if " is restarted" in line]
    assert order == [
        "deployment/hami-scheduler", "deployment/hami-webui", "daemonset/hami-device-plugin", "daemonset/hami-core",
    ]  # fmt: skip
    assert "daemonset/hami-mps: left as it is: its pods have clients" in done.out
    assert world.version("hami-mps", "daemonsets") == "1"
    template = world.get(f"{APPS}/deployments/hami-webui")["spec"]["template"]
    assert template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"]
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "webui"


def test_one_part_is_restarted_alone_and_an_unknown_one_is_refused_with_the_names(world: World) -> None:
    """And MPS not at all."""
    one = world.run("restart", "webui", "--yes")
    unknown = world.run("restart", "schedular", "--yes")
    mps = world.run("restart", "mps", "--yes")

    assert (one.status, world.version("hami-webui"), world.version()) == (0, "2", "1")
    assert unknown.status == 1
    assert "OPS_UNKNOWN_PART: no part schedular is installed; did you mean scheduler?" in unknown.err
    assert "device-plugin" in unknown.err
    assert (mps.status, "OPS_ENDS_CLIENTS" in mps.err) == (1, True)


def test_a_restart_that_fails_stops_before_the_next_part(world: World) -> None:
    """One broken part at a time."""
    path = f"{APPS}/deployments/hami-scheduler"
    body = {"spec": {"template": {"spec": {"containers": [{"name": "extender", "image": f"{IMAGE}:broken"}]}}}}
    world.server.request("PATCH", path, body, "application/strategic-merge-patch+json")

    done = world.run("restart", "--yes")

    assert done.status == 1
    assert "OPS_ROLLOUT_FAILED: deployment/hami-scheduler: no progress until its deadline" in done.err
    assert world.version("hami-webui") == "1"


# Update


def test_an_update_changes_every_container_of_that_image_and_no_other(world: World) -> None:
    """HAMi-core's image has the same name, and is another project's."""
    before = ops_world.images(world.server)

    done = world.run("update", "registry.example:5000/mirror/hami:0.2.0", "--yes")

    assert done.status == 0, done.err
    wanted = "registry.example:5000/mirror/hami:0.2.0"
    changed = {"hami-scheduler/extender": wanted, "hami-webui/webui": wanted}
    assert ops_world.images(world.server) == before | changed
    assert "hami-scheduler: extender: ghcr.io/hami-py/hami:0.1.0 -> registry.example" in done.out
    assert "was pulled and starts" in done.out
    assert world.run("update", wanted, "--yes").out.endswith("already\n")


def test_the_image_is_checked_where_the_part_runs_before_anything_changes(world: World) -> None:
    """An image that is missing for the GPU nodes' platform must not take a plugin down first."""
    before = ops_world.images(world.server)

    done = world.run("update", f"{NODE_IMAGE}:{ops_world.UNPULLABLE}", "--yes")

    assert done.status == 1
    assert "OPS_IMAGE_UNUSABLE" in done.err
    assert "ImagePullBackOff: not found" in done.err
    assert ops_world.images(world.server) == before
    assert pods(world, NAMESPACE) == []
    (checked,) = world.controllers.pods_seen
    assert checked["spec"]["nodeSelector"] == {"gpu": "on"}
    assert checked["spec"]["automountServiceAccountToken"] is False
    assert checked["spec"]["activeDeadlineSeconds"] == 600


def test_an_update_whose_rollout_fails_is_rolled_back_everywhere(world: World) -> None:
    """Also the parts that had been updated well before."""
    before = ops_world.images(world.server)

    done = world.run("update", f"{IMAGE}:{ops_world.BROKEN}", "--yes")

    assert done.status == 1
    assert "OPS_ROLLED_BACK: deployment/hami-scheduler: no progress until its deadline" in done.err
    assert "kubectl -n hami-system rollout undo deployment/hami-scheduler" in done.err
    assert ops_world.images(world.server) == before
    assert world.version("hami-webui") == "1"


def test_an_update_that_takes_too_long_is_rolled_back_and_says_what_is_left(world: World) -> None:
    """Without a controller the rollback is written, and not confirmed."""
    before = ops_world.images(world.server)
    calls.eventually(lambda: world.get(f"{APPS}/deployments/hami-scheduler").get("status"))
    world.controllers.idle = True

    done = world.run("update", f"{IMAGE}:0.2.0", "--yes", "--skip-image-check", "--timeout", "0.2")

    assert done.status == 1
    assert "OPS_ROLLBACK_FAILED" in done.err
    assert ops_world.images(world.server) == before


@pytest.mark.parametrize(("image", "code"), [
    ("ghcr.io/hami-py/hami", "OPS_IMAGE_INVALID"), ("hami:", "OPS_IMAGE_INVALID"), ("a b:1", "OPS_IMAGE_INVALID"),
    ("hami@sha256:12", "OPS_IMAGE_INVALID"), ("x" * 600 + ":1", "OPS_IMAGE_INVALID"),
    ("example/other:1", "OPS_IMAGE_UNKNOWN"), ("registry.k8s.io/kube-scheduler:v1.37.0", "OPS_IMAGE_UNKNOWN"),
])  # fmt: skip
def test_an_image_that_cannot_be_meant_is_refused(image: str, code: str, world: World) -> None:
    """Before a call that writes; with the names that can be."""
    done = world.run("update", image, "--yes")

    assert (done.status, code in done.err) == (1, True), done.err
    assert world.version() == "1"


def test_an_update_that_the_api_server_refuses_changes_no_part(world: World) -> None:
    """The dry run of every part comes before the first write."""
    world.server.app.faults.arm(faults.Fault("PATCH", "hami-webui", refuse_with=422))

    done = world.run("update", f"{IMAGE}:0.2.0", "--yes")

    assert done.status == 2
    assert set(ops_world.images(world.server).values()) >= {f"{IMAGE}:0.1.0"}
    assert world.version() == "1"


def test_an_update_that_the_api_server_stops_halfway_is_rolled_back(world: World) -> None:
    """The first part had the new image already."""
    before = ops_world.images(world.server)
    world.server.app.faults.arm(faults.Fault("PATCH", "hami-webui"))  # The dry run passes.
    world.server.app.faults.arm(faults.Fault("PATCH", "hami-webui", refuse_with=500))
    done = world.run("update", f"{IMAGE}:0.2.0", "--yes")

    assert done.status == 1
    assert "deployment/hami-scheduler runs ghcr.io/hami-py/hami:0.2.0" in done.out
    assert "OPS_ROLLED_BACK: deployment/hami-webui: PATCH" in done.err
    assert ops_world.images(world.server) == before


def test_an_image_that_another_client_set_meanwhile_is_not_rolled_back(world: World) -> None:
    """Their change is newer than ours."""
    options = argparse.Namespace(image=f"{IMAGE}:0.2.0", timeout=60.0)

    async def roll_back() -> failures.CommandFailed:
        async with kubernetes.Client(world.folder / "kubeconfig", "test") as client:
            parts = await installed.parts(client, NAMESPACE)
            changes = images.changes(parts, images.parse(options.image))
            for change, tag in zip(changes, ("0.3.0", "0.2.0"), strict=True):
                image = f"{IMAGE}:{tag}"
                body = images.patch(change, dict.fromkeys(change.before, image))
                await client.patch_items(change.part.path, json.dumps(body).encode())
            return await update.roll_back(client, changes, options, "it failed")

    failed = asyncio.run(roll_back())

    assert "OPS_ROLLBACK_FAILED: it failed; not rolled back: deployment/hami-scheduler was changed again" in str(failed)
    found = ops_world.images(world.server)
    assert (found["hami-scheduler/extender"], found["hami-webui/webui"]) == (f"{IMAGE}:0.3.0", f"{IMAGE}:0.1.0")


def test_a_workload_that_was_made_anew_meanwhile_is_not_changed(world: World) -> None:
    """It is not the one that was shown."""
    world.server.app.faults.arm(faults.Fault("PATCH", "hami-scheduler", refuse_with=409))

    done = world.run("scale", "2", "--yes")

    assert (done.status, "OPS_CHANGED_MEANWHILE" in done.err) == (1, True)


# Backup and restore


def prepare(world: World) -> pathlib.Path:
    """Settings as an administrator makes them, and their backup."""
    gpu = records.decode_inventory(world.annotations()[records.INVENTORY])[0].uuid
    world.annotate(device_cordon=gpu, remediation='{"old":1}')
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"limits.nvidia.com/gpu": "4"}}}
    world.server.request("POST", "/api/v1/namespaces/default/resourcequotas", quota)
    other = {"metadata": {"name": "cpu"}, "spec": {"hard": {"cpu": "4"}}}
    world.server.request("POST", "/api/v1/namespaces/default/resourcequotas", other)
    for name, value in (("train", 1000), ("system-x", 9)):
        body = {"metadata": {"name": name}, "value": value}
        world.server.request("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", body)
    data = {"release": release({"scheduler": {"replicas": 2}})}
    secret = {
        "metadata": {
            "name": "sh.helm.release.v1.hami.v1", "labels": {"owner": "helm", "status": "deployed", "name": "hami"},
        },
        "type": "helm.sh/release.v1", "data": data,
    }  # fmt: skip
    world.server.request("POST", SECRETS, secret)
    tls = {
        "metadata": {"name": "hami-scheduler-tls", "labels": ops_world.labels("scheduler")},
        "data": {"tls.key": "c2VjcmV0"},
    }
    world.server.request("POST", SECRETS, tls)
    path = world.folder / "hami.json"
    done = world.run("backup", str(path))
    assert done.status == 0, done.err
    return path


def test_a_backup_holds_the_settings_and_no_secret(world: World) -> None:
    """Its file is for its owner only; what is missing is named."""
    path = prepare(world)
    content = json.loads(path.read_text())["content"]

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (node,) = content["nodes"]
    assert (node["name"], node["labels"]) == ("gpu-1", {"gpu": "on"})
    assert set(node["annotations"]) == {"hami.io/device-cordon", "hami.io/remediation"}
    assert [one["name"] for one in content["config_maps"]] == ["hami-scheduler"]
    assert [one["name"] for one in content["quotas"]] == ["gpus"]
    assert [one["name"] for one in content["priority_classes"]] == ["train"]
    assert "secret" not in path.read_text().lower().replace("--with-secrets", "").replace("secrets:", "")
    assert "c2VjcmV0" not in path.read_text()
    again = world.run("backup", str(path))
    assert (again.status, "OPS_FILE_EXISTS" in again.err) == (1, True)
    assert world.run("backup", str(path), "--overwrite").status == 0


def test_secrets_and_helm_values_are_saved_on_demand(world: World) -> None:
    """And the values come back as a file for helm."""
    prepare(world)
    path, values = world.folder / "all.json", world.folder / "values.json"

    done = world.run("backup", str(path), "--with-secrets")
    written = world.run("restore", str(path), "--write-values", str(values))

    assert "Helm values" in done.out
    assert [one["name"] for one in json.loads(path.read_text())["content"]["secrets"]] == ["hami-scheduler-tls"]
    assert written.status == 0, written.err
    assert json.loads(values.read_text()) == {"scheduler": {"replicas": 2}}
    given = world.folder / "given.json"
    given.write_text('{"global": {}}')
    assert world.run("backup", str(world.folder / "b.json"), "--values", str(given)).status == 0
    assert json.loads((world.folder / "b.json").read_text())["content"]["helm_values"] == {"global": {}}


def test_a_restore_shows_the_differences_and_writes_them(world: World) -> None:
    """What was lost comes back."""
    path = prepare(world)
    cordon = world.annotations()[records.CORDON]
    world.annotate(device_cordon=None, remediation=None)
    body = {"metadata": {"labels": {"gpu": None}}}
    world.server.request("PATCH", "/api/v1/nodes/gpu-1", body, "application/merge-patch+json")
    world.server.request("DELETE", "/api/v1/namespaces/default/resourcequotas/gpus")
    world.server.request("DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/train")
    patch = {"data": {"config.yaml": "a: 2", "more": "x"}}
    world.server.request("PATCH", f"{CONFIG_MAPS}/hami-scheduler", patch, "application/merge-patch+json")

    dry = world.run("restore", str(path), "--dry-run")
    refused = world.run("restore", str(path))
    assert (dry.status, refused.status) == (0, 1)
    assert "OPS_NOT_CONFIRMED" in refused.err
    assert records.CORDON not in world.annotations()
    for line in (
        "create priorityclass/train", "create resourcequota/default/gpus", "change configmap/hami-scheduler",
        "  ~ config.yaml: a: 2 -> a: 1", "  - more: x", "change node/gpu-1", f"  + hami.io/device-cordon: {cordon}",
        "  + gpu: on",
    ):  # fmt: skip
        assert line in dry.out.splitlines(), dry.out

    done = world.run("restore", str(path), "--yes")

    assert done.status == 0, done.err
    assert "4 of 4 objects written" in done.out
    assert "4 of 4: node/gpu-1 written" in done.err
    assert world.annotations()[records.CORDON] == cordon
    assert world.annotations()["hami.io/remediation"] == '{"old":1}'
    assert world.get(f"{CONFIG_MAPS}/hami-scheduler")["data"] == {"config.yaml": "a: 1"}
    assert world.get("/apis/scheduling.k8s.io/v1/priorityclasses/train")["value"] == 1000
    assert "nothing to write" in world.run("restore", str(path), "--yes").out


def test_a_restore_ends_no_cordon_and_keeps_what_was_learned_since(world: World) -> None:
    """A GPU that was cordoned after the backup is out of order now."""
    path = prepare(world)
    first, second = (gpu.uuid for gpu in records.decode_inventory(world.annotations()[records.INVENTORY]))
    world.annotate(device_cordon=second, remediation='{"new":2}')

    assert world.run("restore", str(path), "--yes").status == 0

    assert records.decode_cordon(world.annotations()[records.CORDON]) == {first, second}
    assert world.annotations()["hami.io/remediation"] == '{"new":2}'


def test_an_object_that_changes_during_a_restore_is_not_overwritten(world: World) -> None:
    """The others are written, and the status says that one is missing."""
    path = prepare(world)
    world.annotate(device_cordon=None)
    world.server.request("DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/train")
    world.server.app.faults.arm(faults.Fault("PATCH", "nodes/gpu-1", refuse_with=409))

    done = world.run("restore", str(path), "--yes")

    assert done.status == 1
    assert "OPS_CHANGED_MEANWHILE: node/gpu-1" in done.err
    assert "1 of 2 objects written" in done.out


def damaged(text: str) -> str:
    return text.replace('"value": 1000', '"value": 9999')


@pytest.mark.parametrize(("spoil", "code"), [
    (damaged, "OPS_BACKUP_DAMAGED"),
    (lambda text: text[: len(text) // 2], "OPS_BACKUP_DAMAGED"),
    (lambda text: "[" * 100_000, "OPS_BACKUP_DAMAGED"),
    (lambda text: '{"kind": "other"}', "OPS_BACKUP_DAMAGED"),
    (lambda text: "", "OPS_BACKUP_DAMAGED"),
    (lambda text: text.replace('"version": 1', '"version": 2'), "OPS_BACKUP_TOO_NEW"),
])  # fmt: skip
def test_a_damaged_or_newer_backup_is_refused(spoil: Callable[[str], str], code: str, world: World) -> None:
    """A half-copied file must not be half restored."""
    path = prepare(world)
    world.server.request("DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/train")
    path.write_text(spoil(path.read_text()))

    done = world.run("restore", str(path), "--yes")

    assert (done.status, code in done.err) == (1, True), done.err
    with pytest.raises(urllib.error.HTTPError):
        world.get("/apis/scheduling.k8s.io/v1/priorityclasses/train")


def test_a_backup_of_another_cluster_is_refused_unless_demanded(world: World) -> None:
    """A wrong context is one keystroke away."""
    path = prepare(world)
    with api_server.running() as other:
        ops_world.install(other)
        kubeconfig = other.write_kubeconfig(world.folder / "other")
        words = ("restore", str(path), "--yes", "--kubeconfig", str(kubeconfig))
        refused = world.run(*words, cluster=False)
        done = world.run(*words, "--other-cluster", cluster=False)

        assert refused.status == 1
        assert "OPS_OTHER_CLUSTER" in refused.err
        assert done.status == 0, done.err
        assert other.request("GET", "/apis/scheduling.k8s.io/v1/priorityclasses/train")["value"] == 1000


# Cleanup


def test_cleanup_deletes_old_failed_pods_with_gpus_only(world: World) -> None:
    """A pod without GPUs, one that failed just now, and one that runs stay."""
    failed_pod(world, "evicted", hours=30, reason="Evicted")
    failed_pod(world, "failed", hours=26)
    failed_pod(world, "recent", hours=1)
    failed_pod(world, "no-gpu", hours=30, gpu=False)
    calls.create(world.server, "runs")

    done = world.run("cleanup", "--yes")

    assert done.status == 0, done.err
    assert pods(world) == ["no-gpu", "recent", "runs"]
    assert "pod/default/evicted: Evicted, ended 30h ago" in done.out
    assert "2 pods deleted" in done.out
    assert "they are not visible from here" in done.out
    assert world.run("cleanup", "-n", "kube-system", "--older-than", "30m", "--yes").status == 0
    assert "recent" in pods(world)


def test_cleanup_reports_the_problems_of_nodes(world: World) -> None:
    """What lies on a node is deleted there; from here one sees what its plugin reports."""
    world.annotate(node_problems='{"PLUGIN_NO_LIBRARY": "the library is missing"}')

    done = world.run("cleanup", "--yes")

    assert "node/gpu-1: PLUGIN_NO_LIBRARY: the library is missing" in done.out
    assert "no failed pod with GPU requests ended more than 24h ago" in done.out


def test_cleanup_deletes_the_check_of_an_image_that_an_interrupted_update_left(world: World) -> None:
    """It has ended by itself."""
    containers = [{"name": "check", "image": f"{IMAGE}:1"}]
    metadata = {"name": "hami-image-check-x", "labels": ops_world.labels("image-check")}
    world.server.request("POST", ops_world.PODS, {"metadata": metadata, "spec": {"containers": containers}})
    path = f"{ops_world.PODS}/hami-image-check-x"
    calls.eventually(lambda: world.get(path)["status"]["phase"] == "Succeeded")

    def is_named() -> bool:
        return "hami-image-check-x: image check" in world.run("cleanup", "--older-than", "1s", "--yes").out

    calls.eventually(is_named)
    assert pods(world, NAMESPACE) == []


@pytest.mark.parametrize("age", ["", "24", "0h", "1w", "-1h", "9999999d"])
def test_an_age_that_is_none_is_refused(age: str, world: World) -> None:
    """Before anything is read."""
    done = world.run("cleanup", f"--older-than={age}", "--yes")

    assert (done.status, "is not an age such as 30m, 24h or 7d" in done.err) == (2, True)


# Disk


def summary(free: int, size: int) -> dict[str, Any]:
    disk = {"availableBytes": free << 30, "capacityBytes": size << 30}
    images = {"availableBytes": 90 << 30, "capacityBytes": 100 << 30}
    return {"node": {"fs": disk, "runtime": {"imageFs": images, "containerFs": disk}}}


def test_disk_space_is_read_from_the_kubelets(world: World) -> None:
    """Each file system once; one that is short makes the status 1."""
    fault = faults.Fault("GET", "gpu-1/proxy/stats/summary", times=2, answers=summary(5, 100))
    world.server.app.faults.arm(fault)

    done = world.run("disk")
    enough = world.run("disk", "--least-free", "3", "-o", "json")

    assert done.status == 1
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[1:] == [
        ["gpu-1", "kubelet", "5.0", "GiB", "100.0", "GiB", "5%", "low", "-"],
        ["gpu-1", "images", "90.0", "GiB", "100.0", "GiB", "90%", "ok", "-"],
    ]
    assert enough.status == 0
    assert json.loads(enough.out)["disks"][0]["free_bytes"] == 5 << 30


def test_without_the_right_to_ask_kubelets_the_condition_is_shown(world: World) -> None:
    """Disk pressure is visible in the node itself."""
    world.server.app.faults.arm(faults.Fault("GET", "proxy/stats", times=1, refuse_with=403))
    plain = world.run("disk")
    node = world.get("/api/v1/nodes/gpu-1")
    node["status"]["conditions"] = [{"type": "DiskPressure", "status": "True"}]
    world.server.request("PUT", "/api/v1/nodes/gpu-1/status", node)
    world.server.app.faults.arm(faults.Fault("GET", "proxy/stats", times=1, refuse_with=403))
    pressed = world.run("disk")

    assert (plain.status, "it needs get on nodes/proxy" in plain.out, "unknown" in plain.out) == (0, True, True)
    assert (pressed.status, "DiskPressure" in pressed.out) == (1, True)
    world.server.app.faults.arm(faults.Fault("GET", "proxy/stats", times=1, refuse_with=503))
    assert "DiskPressure; OPS_NO_STATS: GET /api/v1/nodes/gpu-1/proxy/stats/summary: 503" in world.run("disk").out
