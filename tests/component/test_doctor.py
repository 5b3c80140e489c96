"""`hamictl doctor` against the lab: a healthy cluster, and one with a dozen planted faults."""

import base64
import contextlib
import json
import pathlib
import time
from typing import Any

import pytest

from gpu_sharing.core import identifiers, records, reservations
from lab import api_server, certificates, extender_process, gpus, kinds
from tests.component import calls, liar
from tests.component.conftest import SMALL
from tests.component.test_hamictl import hamictl

ADMISSION = "/apis/admissionregistration.k8s.io/v1"


@pytest.fixture
def healthy(server: api_server.Running, tmp_path: pathlib.Path) -> pathlib.Path:
    """A kubeconfig of a cluster that lacks nothing, with a pod that runs."""
    register_webhook(server, "")
    policy = {"metadata": {"name": "guard"}, "spec": {"validations": [{"expression": "'hami.io/vgpu-node' in x"}]}}
    server.request("POST", f"{ADMISSION}/validatingadmissionpolicies", policy)
    create(server, "runs", [share("a", 0, 4000)])
    return server.write_kubeconfig(tmp_path / "healthy")


def register_webhook(server: api_server.Running, bundle: str) -> None:
    config = {"service": {"name": "hami-scheduler", "path": "/webhook"}, "caBundle": bundle}
    body = {"metadata": {"name": "hami"}, "webhooks": [{"name": "vgpu.hami.io", "clientConfig": config}]}
    with contextlib.suppress(Exception):
        server.request("DELETE", f"{ADMISSION}/mutatingwebhookconfigurations/hami")
    server.request("POST", f"{ADMISSION}/mutatingwebhookconfigurations", body)


def share(node: str, index: int, memory_mib: int) -> reservations.Share:
    return reservations.Share(gpus.gpu_uuid(node, index), memory_mib, 10)


def create(
    server: api_server.Running, name: str, shares: list[reservations.Share], node: str = "a", bound_at: int = 0,
    phase: str = records.PHASE_SUCCESS, record: str = "",
) -> None:  # fmt: skip
    """A pod that is bound with a record, or with none."""
    annotations: dict[str, str] = {}
    if shares:
        moment = bound_at or int(time.time())
        annotations = records.pod_annotations(
            (tuple(shares),), identifiers.NodeName(node), moment, identifiers.DecisionId("d")
        )
        annotations[records.BIND_PHASE] = phase
    if record:
        annotations[records.ALLOCATED] = record
    limits = {"nvidia.com/gpu": str(max(len(shares), 1)), "nvidia.com/gpumem": "4000"}
    body = {
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {
            "nodeName": node, "schedulerName": "hami-scheduler",
            "containers": [{"name": "c", "image": "x", "resources": {"limits": limits}}],
        },
    }  # fmt: skip
    server.request("POST", calls.PODS, body)


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = hamictl("doctor", "-o", "json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def reach(extender: extender_process.ExtenderProcess, kubeconfig: pathlib.Path) -> tuple[str, ...]:
    return ("--kubeconfig", str(kubeconfig), "--extender", f"http://{extender.api}")


def test_a_healthy_cluster_has_no_findings(healthy: pathlib.Path, extender: extender_process.ExtenderProcess) -> None:
    """And the exit status says so."""
    status, found = doctor(*reach(extender, healthy))
    assert found == {"summary": {"checks": 8, "errors": 0, "warnings": 0}, "findings": []}
    assert status == 0
    table = hamictl("doctor", *reach(extender, healthy))
    assert table.stdout == "nothing is wrong\n"
    assert table.stderr.splitlines()[0] == "ok   nodes"


def test_each_of_a_dozen_planted_faults_is_found(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    """And nothing else."""
    bare = gpus.gpu_node("bare", SMALL, 0, labels={"gpu": "on"})
    garbled = gpus.gpu_node("garbled", SMALL, 1, annotations={records.INVENTORY: "{{"})
    other = gpus.gpu_node("other", SMALL, 1)
    other["metadata"]["annotations"] = {}
    short = gpus.gpu_node("short", SMALL, 1)
    short["status"]["allocatable"] = {**short["status"]["allocatable"], "nvidia.com/gpu": "3"}
    ill = gpus.gpu_node("ill", SMALL, 1)
    text = ill["metadata"]["annotations"][records.INVENTORY]
    ill["metadata"]["annotations"][records.INVENTORY] = text.replace('"health":true', '"health":false')
    ill["status"]["allocatable"] = {**ill["status"]["allocatable"], "nvidia.com/gpu": "0"}
    keep = server.app.store
    server.call(lambda: [keep.create(kinds.NODES, "", one) for one in (bare, garbled, other, short, ill)])
    create(server, "corrupt", [share("a", 1, 100)], record="garbage")
    create(server, "smuggled", [], node="b")
    create(server, "twice", [share("b", 0, 9000)], node="b")
    create(server, "once", [share("b", 0, 9000)], node="b")
    create(server, "stuck", [share("a", 0, 100)], bound_at=int(time.time()) - 900, phase=records.PHASE_ALLOCATING)
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {"limits.nvidia.com/gpumem": "much"}}}
    server.request("POST", "/api/v1/namespaces/default/resourcequotas", quota)
    certificates.write(tmp_path / "crt", tmp_path / "key")
    register_webhook(server, base64.b64encode((tmp_path / "crt").read_bytes()).decode())
    server.request("DELETE", f"{ADMISSION}/validatingadmissionpolicies/guard")
    calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 6)

    status, found = doctor(*reach(extender, healthy))

    assert status == 1
    assert sorted((one["code"], one["about"]) for one in found["findings"]) == sorted(
        [
            ("DOCTOR_NODE_WITHOUT_PLUGIN", "node/bare"), ("DOCTOR_NODE_RECORD", "node/garbled"),
            ("DOCTOR_FOREIGN_PLUGIN", "node/other"), ("DOCTOR_SLOTS_DIFFER", "node/short"),
            ("DOCTOR_GPU_SICK", "gpu/ill/0"), ("DOCTOR_POD_RECORD", "pod/default/corrupt"),
            ("DOCTOR_POD_WITHOUT_RECORD", "pod/default/smuggled"), ("DOCTOR_OVERSUBSCRIBED", "gpu/b/0"),
            ("DOCTOR_STUCK", "pod/default/stuck"), ("DOCTOR_QUOTA", "quota/default/team"),
            ("DOCTOR_WEBHOOK_CERTIFICATE", "cluster"), ("DOCTOR_NO_GUARD", "cluster"),
        ]
    )  # fmt: skip
    assert all(one["remedy"] and one["meaning"] and one["detail"] for one in found["findings"])
    assert found["summary"] == {"checks": 8, "errors": 7, "warnings": 5}


def test_an_extender_that_is_away_is_a_finding_and_a_cluster_that_is_away_no_answer(healthy: pathlib.Path) -> None:
    """Status 1, and 2."""
    status, found = doctor("--kubeconfig", str(healthy), "--extender", "http://127.0.0.1:1")
    assert (status, [one["code"] for one in found["findings"]]) == (1, ["DOCTOR_EXTENDER_AWAY"])
    assert hamictl("doctor", "--kubeconfig", "/nowhere").returncode == 2


def test_what_the_extender_believes_is_compared_with_the_records(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess
) -> None:
    """A pod that it does not know, one that is gone, one elsewhere, one with other GPUs."""
    (pod,) = calls.read(extender, "pods")["pods"]
    gone = {**pod, "uid": "gone", "name": "ghost"}
    elsewhere = {**pod, "node": "b"}
    thinner = json.loads(json.dumps(pod))
    thinner["containers"][0][0]["memory_mib"] = 1
    for believed, details in (
        ([], ["the extender does not know it"]),
        ([pod, gone], ["the extender knows it, and it is gone"]),
        ([elsewhere], ["the extender has it on b, it is on a"]),
        ([thinner], ["the extender counts other GPUs for it than its record says"]),
    ):
        with liar.telling({"/api/v1/pods": {"pods": believed}}) as url:
            _, found = doctor("--kubeconfig", str(healthy), "--extender", url)
        assert [one["detail"] for one in found["findings"]] == details
        assert {one["code"] for one in found["findings"]} == {"DOCTOR_DRIFT"}


def test_a_node_is_examined_where_it_stands(tmp_path: pathlib.Path) -> None:
    """Everything is missing, then everything is there but the driver's library, of which there is none here."""
    arguments = ("node", "--root", str(tmp_path), "--kubelet-dir", str(tmp_path / "kubelet"))
    everything = [
        "DOCTOR_NODE_DRIVER", "DOCTOR_NODE_DEVICES", "DOCTOR_NODE_CDI", "DOCTOR_NODE_KUBELET", "DOCTOR_NODE_PLUGIN",
        "DOCTOR_NODE_SHARED_MEMORY",
    ]  # fmt: skip
    assert [one["code"] for one in doctor(*arguments)[1]["findings"]] == everything

    for name in ("dev/shm", "etc/cdi", "kubelet/device-plugins"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("dev/nvidiactl", "kubelet/device-plugins/kubelet.sock", "kubelet/device-plugins/hami-x.sock"):
        (tmp_path / name).touch()
    (tmp_path / "etc/cdi/nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    assert [one["code"] for one in doctor(*arguments)[1]["findings"]] == ["DOCTOR_NODE_DRIVER"]
