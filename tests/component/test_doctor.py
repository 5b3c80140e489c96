"""`hamictl doctor` against the lab: a healthy cluster, and one with a dozen planted faults."""

import base64
import contextlib
import datetime
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
from typing import Any

import pytest

from gpu_sharing.core import allocations, identifiers, records
from hamictl import node_checks
from lab import api_server, c_compiler, certificates, cluster, extender_process, fake_driver, faults, gpus, kinds
from tests.component import calls, liar
from tests.component.conftest import SMALL
from tests.component.test_hamictl import hamictl

pytestmark = pytest.mark.slow

ADMISSION = "/apis/admissionregistration.k8s.io/v1"


@pytest.fixture
def healthy(server: api_server.Running, tmp_path: pathlib.Path) -> pathlib.Path:
    """A kubeconfig of a cluster that lacks nothing, with a pod that runs."""
    register_webhook(server, "")
    guard(server)
    create(server, "runs", [share("a", 0, 4000)])
    return server.write_kubeconfig(tmp_path / "healthy")


def guard(server: api_server.Running) -> None:
    policy = {"metadata": {"name": "guard"}, "spec": {"validations": [{"expression": "'hami.io/vgpu-node' in x"}]}}
    server.request("POST", f"{ADMISSION}/validatingadmissionpolicies", policy)


def register_webhook(server: api_server.Running, bundle: str) -> None:
    config = {"service": {"name": "hami-scheduler", "path": "/webhook"}, "caBundle": bundle}
    body = {"metadata": {"name": "hami"}, "webhooks": [{"name": "vgpu.hami.io", "clientConfig": config}]}
    with contextlib.suppress(Exception):
        server.request("DELETE", f"{ADMISSION}/mutatingwebhookconfigurations/hami")
    server.request("POST", f"{ADMISSION}/mutatingwebhookconfigurations", body)


def share(node: str, index: int, memory_mib: int) -> allocations.Share:
    return allocations.Share(gpus.gpu_uuid(node, index), memory_mib, 10)


def create(
    server: api_server.Running,
    name: str,
    shares: list[allocations.Share],
    node: str = "a",
    bound_at: int = 0,
    phase: str = records.PHASE_SUCCESS,
    record: str = "",
) -> None:
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
            "nodeName": node,
            "schedulerName": "hami-scheduler",
            "containers": [{"name": "c", "image": "x", "resources": {"limits": limits}}],
        },
    }
    server.request("POST", calls.PODS, body)


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = hamictl("doctor", "-o", "json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def reach(extender: extender_process.ExtenderProcess, kubeconfig: pathlib.Path) -> tuple[str, ...]:
    reached = ("--extender", f"http://{extender.api}", "--health", f"http://{extender.health}")
    return ("--kubeconfig", str(kubeconfig), *reached)


def told(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["code"], one["about"], one["detail"]) for one in found["findings"]]


def test_a_healthy_cluster_has_no_findings(healthy: pathlib.Path, extender: extender_process.ExtenderProcess) -> None:
    """And the exit status says so."""
    status, found = doctor(*reach(extender, healthy))
    assert found["summary"] == {"checks": 22, "errors": 0, "warnings": 0}
    assert found["findings"] == found["not_installed"] == []
    assert status == 0
    table = hamictl("doctor", *reach(extender, healthy))
    assert table.stdout == "no problems found\n"
    lines = table.stderr.splitlines()
    assert datetime.datetime.fromisoformat(lines[0]).tzinfo is not None
    assert lines[1].startswith("Kubernetes v1.36.0-lab, 2 nodes (2 ready): ")
    assert (lines[2], lines[-1]) == ("ok   rights", "22 checks: 0 errors, 0 warnings")


def test_the_report_says_what_the_cluster_is(healthy: pathlib.Path, extender: extender_process.ExtenderProcess) -> None:
    """A bug report without time, sizes and conditions raises the same questions each time."""
    _, found = doctor(*reach(extender, healthy))

    assert datetime.datetime.fromisoformat(found["at"]).tzinfo is not None
    report = found["report"]
    assert (report["api_server"], report["pods_with_gpus"]) == ("v1.36.0-lab", 1)
    (first, _) = report["nodes"]
    assert first == {
        "name": "a", "conditions": {"Ready": "True"}, "cordoned": False, "cpu_thousandths": 128_000,
        "memory_mib": 1 << 20, "ephemeral_storage_mib": 1 << 20, "gpus": 2,
    }  # fmt: skip


def test_what_the_demo_leaves_out_is_no_problem(
    extender: extender_process.ExtenderProcess, server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """A newcomer's first `hamictl doctor` called the demo bad."""
    server.app.version = cluster.DEMO_VERSION
    kubeconfig = server.write_kubeconfig(tmp_path / "k")
    status, found = doctor(*reach(extender, kubeconfig))
    table = hamictl("doctor", *reach(extender, kubeconfig))

    assert (status, found["findings"]) == (0, [])
    assert [one["code"] for one in found["not_installed"]] == ["DOCTOR_NO_WEBHOOK", "DOCTOR_NO_GUARD"]
    assert table.stdout == "no problems found\n"
    assert "none webhook: not installed here" in table.stderr.splitlines()


def test_many_findings_of_a_kind_are_counted_in_one_block(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """Two thousand equal rows hid the one that mattered."""
    for index in range(7):
        create(server, f"smuggled-{index}", [], node="b")
    create(server, "corrupt", [share("a", 1, 100)], record="garbage")
    calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 9)

    table = hamictl("doctor", *reach(extender, healthy))
    wide = hamictl("doctor", *reach(extender, healthy), "-o", "wide")
    _, found = doctor(*reach(extender, healthy))

    first = ", ".join(f"default/smuggled-{index}" for index in range(5))
    assert f"7 pods: {first}, …" in " ".join(table.stdout.split())
    assert "  pod/default/corrupt: " in table.stdout
    assert sum(not line.startswith(" ") for line in table.stdout.splitlines()) == 2
    assert len(wide.stdout.splitlines()) == 1 + len(found["findings"]) == 9
    assert "bad  pods: 8 problems" in table.stderr.splitlines()


def test_a_node_that_is_not_well_is_found(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """Its pods wait, and nothing about GPUs says why."""
    conditions = [
        {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "no network"},
        {"type": "DiskPressure", "status": "True", "reason": "KubeletHasDiskPressure"},
        {"type": "PIDPressure", "status": "False"},
    ]
    patch = "application/merge-patch+json"
    server.request("PATCH", "/api/v1/nodes/a/status", {"status": {"conditions": conditions}}, patch)

    assert told(doctor(*reach(extender, healthy))[1]) == [
        ("DOCTOR_NODE_CONDITION", "node/a", "Ready is False: KubeletNotReady no network"),
        ("DOCTOR_NODE_CONDITION", "node/a", "DiskPressure is True: KubeletHasDiskPressure"),
    ]


def test_each_of_a_dozen_planted_faults_is_found(
    healthy: pathlib.Path,
    extender: extender_process.ExtenderProcess,
    server: api_server.Running,
    tmp_path: pathlib.Path,
) -> None:
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
    assert found["summary"] == {"checks": 22, "errors": 7, "warnings": 5}


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
        ([pod, gone], ["the extender knows it, and it is deleted"]),
        ([elsewhere], ["the extender has it on b, it is on a"]),
        ([thinner], ["the extender counts other GPUs for it than its record has"]),
    ):
        with liar.telling({"/api/v1/pods": {"pods": believed}}) as url:
            _, found = doctor("--kubeconfig", str(healthy), "--extender", url)
        assert [one["detail"] for one in found["findings"]] == details
        assert {one["code"] for one in found["findings"]} == {"DOCTOR_DRIFT"}


def test_what_the_account_may_not_is_a_finding_and_the_rest_goes_on(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """Whether the API server says so beforehand, or only when it is requested the thing itself."""
    create(server, "smuggled", [], node="b")
    calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 2)
    smuggled = ("DOCTOR_POD_WITHOUT_RECORD", "pod/default/smuggled", "on node b, schedulerName hami-scheduler")
    for resource in ("mutatingwebhookconfigurations", "validatingadmissionpolicies", "leases", "daemonsets"):
        server.app.faults.arm(faults.Fault("GET", f"/{resource}$", refuse_with=403))
    assert told(doctor(*reach(extender, healthy))[1]) == [
        ("DOCTOR_RIGHTS", "account", "the right is missing: list daemonsets.apps"),
        ("DOCTOR_RIGHTS", "account", "the right is missing: list leases.coordination.k8s.io"),
        (
            "DOCTOR_RIGHTS",
            "account",
            "the right is missing: list mutatingwebhookconfigurations.admissionregistration.k8s.io",
        ),
        (
            "DOCTOR_RIGHTS",
            "account",
            "the right is missing: list validatingadmissionpolicies.admissionregistration.k8s.io",
        ),
        smuggled,
    ]

    no = {"status": {"allowed": False}}
    server.app.faults.arm(faults.Fault("POST", "selfsubjectaccessreviews", times=7, answers=no))
    denied = told(doctor(*reach(extender, healthy))[1])
    assert denied[5] == ("DOCTOR_RIGHTS", "account", "the right is missing: list resourcequotas")
    assert [one[0] for one in denied] == ["DOCTOR_RIGHTS"] * 7 + ["DOCTOR_POD_WITHOUT_RECORD"]

    server.app.faults.arm(faults.Fault("GET", "^/api/v1/nodes", times=2, refuse_with=403))
    blind = hamictl("doctor", *reach(extender, healthy))
    assert blind.returncode == 2
    assert "you need to list nodes" in blind.stderr


def test_what_kubectl_needs_to_reach_the_extender_is_asked_for_too(
    healthy: pathlib.Path, server: api_server.Running
) -> None:
    """Where no URL is given; a pod of it is then forwarded to."""
    no = {"status": {"allowed": False}}
    server.app.faults.arm(faults.Fault("POST", "selfsubjectaccessreviews", times=20, answers=no))
    _, found = doctor("--kubeconfig", str(healthy), "--system-namespace", "gpus")
    assert [one["detail"] for one in found["findings"]][:3] == [
        "the right is missing: create pods/portforward -n gpus",
        "the right is missing: get deployments.apps -n gpus",
        "the right is missing: list daemonsets.apps",
    ]
    assert found["findings"][-1]["code"] == "DOCTOR_EXTENDER_AWAY"


def test_an_api_server_that_is_slow_is_told_from_one_that_was_slow_once(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """Binding waits for it."""
    server.app.faults.arm(faults.Fault("GET", "^/version$", times=2, delay_seconds=1.2))
    assert told(doctor(*reach(extender, healthy))[1]) == []
    server.app.faults.arm(faults.Fault("GET", "^/version$", times=3, delay_seconds=1.2))
    ((code, about, sentence),) = told(doctor(*reach(extender, healthy))[1])
    assert (code, about) == ("DOCTOR_API_SLOW", "cluster")
    seconds = re.fullmatch(r"the fastest of several answers took (\d+\.\d) s", sentence)
    assert seconds
    assert float(seconds[1]) >= 1.2


def lease(server: api_server.Running, namespace: str, name: str, holder: str, renewed_in_seconds: float) -> None:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=renewed_in_seconds)
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": 15,
        "renewTime": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    with contextlib.suppress(urllib.error.HTTPError):
        server.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    server.request("POST", path, {"metadata": {"name": name}, "spec": spec})


def test_clocks_that_differ_are_told_with_whose_they_are(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """A certificate ends early by one of them, and a pod seems to be stuck."""
    began = time.time()
    lease(server, "kube-node-lease", "a", "a", 0)
    lease(server, "kube-node-lease", "b", "b", 3600)
    create(server, "early", [share("b", 0, 100)], node="b", bound_at=int(time.time()) + 900)
    calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 2)

    found = told(doctor(*reach(extender, healthy))[1])
    assert [one[:2] for one in found] == [("DOCTOR_CLOCK", "node/b"), ("DOCTOR_CLOCK", "pod/default/early")]
    early = re.fullmatch(r"its heartbeat is (\d+) s ahead of the API server's clock", found[0][2])
    assert early
    assert 3600 - (time.time() - began) - 1 <= int(early[1]) <= 3601  # The command may look that much later.

    server.app.faults.clock_ahead_seconds = -7200
    found = told(doctor(*reach(extender, healthy))[1])
    behind = re.fullmatch(r"the API server's is (\d+) s behind this machine's", found[0][2])
    assert behind
    assert int(behind[1]) >= 7199
    assert ("DOCTOR_CLOCK", "node/a") in [one[:2] for one in found]


def test_another_installation_on_the_same_cluster_is_found(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess, server: api_server.Running
) -> None:
    """Two schedulers, two webhooks, and NVIDIA's own plugin, each where it does harm and not where it does none."""
    lease(server, "hami-system", "hami-scheduler", "one_1", 0)
    lease(server, "left-behind", "hami-scheduler", "gone_1", -900)
    plugin = {"image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.0", "name": "c"}
    elsewhere = {
        "metadata": {"name": "elsewhere"},
        "spec": {
            "template": {
                "spec": {
                    "containers": [plugin],
                    "nodeSelector": {"nvidia": "yes"},
                }
            }
        },
    }
    daemon_sets = "/apis/apps/v1/namespaces/default/daemonsets"
    server.request("POST", daemon_sets, elsewhere)
    assert told(doctor(*reach(extender, healthy))[1]) == []

    lease(server, "kube-system", "hami-scheduler", "two_2", 0)
    config = {"service": {"namespace": "old", "name": "hami", "path": "/webhook"}, "caBundle": ""}
    body = {"metadata": {"name": "old"}, "webhooks": [{"name": "vgpu.hami.io", "clientConfig": config}]}
    server.request("POST", f"{ADMISSION}/mutatingwebhookconfigurations", body)
    everywhere = {"metadata": {"name": "nvidia"}, "spec": {"template": {"spec": {"containers": [plugin]}}}}
    server.request("POST", daemon_sets, everywhere)

    status, found = doctor(*reach(extender, healthy))
    assert status == 1
    assert told(found) == [
        ("DOCTOR_SECOND_WEBHOOK", "cluster", "default/hami-scheduler and old/hami"),
        ("DOCTOR_SECOND_SCHEDULER", "lease/hami-system/hami-scheduler", "held by one_1, and another one is active too"),
        ("DOCTOR_SECOND_SCHEDULER", "lease/kube-system/hami-scheduler", "held by two_2, and another one is active too"),
        ("DOCTOR_NVIDIA_PLUGIN", "daemonset/default/nvidia", "NVIDIA's device plugin on a, b"),
    ]


def test_a_part_of_the_extender_that_is_not_well_is_told_with_its_reason(
    healthy: pathlib.Path, extender: extender_process.ExtenderProcess
) -> None:
    """Its health endpoint knows more than whether it is ready."""
    parts = {
        "nodes": {"healthy": False, "required": True, "reason": "the watch is 90 s old"},
        "events": {"healthy": False, "required": False, "reason": "12 were dropped"},
        "pods": {"healthy": True, "required": True, "reason": "in step"},
    }
    api = ("--kubeconfig", str(healthy), "--extender", f"http://{extender.api}")
    with liar.telling({"/healthz": {"components": parts}}, status=503) as url:
        _, found = doctor(*api, "--health", url)
    assert [(one["severity"], one["about"], one["detail"]) for one in found["findings"]] == [
        ("warning", "extender/events", "12 were dropped"),
        ("error", "extender/nodes", "the watch is 90 s old"),
    ]
    assert {one["code"] for one in found["findings"]} == {"DOCTOR_EXTENDER_COMPONENT"}

    away = hamictl("doctor", *api, "--health", "http://127.0.0.1:1")
    assert away.returncode == 2
    assert away.stderr.startswith("hamictl: no answer from http://127.0.0.1:1")


@pytest.fixture
def node(tmp_path: pathlib.Path) -> pathlib.Path:
    """The root of a node that lacks nothing but a driver."""
    for name in ("dev/shm", "etc/cdi", "kubelet/device-plugins", "run/containerd", "sys/fs/cgroup", "run/cdi"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "dev/nvidiactl",
        "kubelet/device-plugins/kubelet.sock",
        "kubelet/device-plugins/hami-x.sock",
        "run/containerd/containerd.sock",
        "sys/fs/cgroup/cgroup.controllers",
    ):
        (tmp_path / name).touch()
    (tmp_path / "etc/cdi/nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    return tmp_path


def examined(root: pathlib.Path, *arguments: str, library: pathlib.Path | None = None, **state: str) -> list[str]:
    """The codes of a node's findings, with a driver's library in place of the one there may be."""
    environment = {"LD_LIBRARY_PATH": str(library or root), **state}
    where = ("--root", str(root), "--kubelet-dir", str(root / "kubelet"))
    done = hamictl("doctor", "node", *where, "-o", "json", *arguments, environment=environment)
    assert done.returncode in (0, 1), done.stderr
    return [one["code"] for one in json.loads(done.stdout)["findings"]]


def test_a_node_is_examined_where_it_stands(tmp_path: pathlib.Path) -> None:
    """Everything is missing."""
    assert examined(tmp_path) == [
        "DOCTOR_NODE_DRIVER", "DOCTOR_NODE_DEVICES", "DOCTOR_NODE_RUNTIME", "DOCTOR_NODE_CDI", "DOCTOR_NODE_KUBELET",
        "DOCTOR_NODE_PLUGIN", "DOCTOR_NODE_CGROUP", "DOCTOR_NODE_SHARED_MEMORY",
    ]  # fmt: skip


def test_a_driver_is_asked_for_its_version_and_for_what_the_plugin_needs(
    node: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """None, a good one, one that does not start, one that hangs, and one that is too old."""
    driver = fake_driver.make(tmp_path, "a", 1)
    library = fake_driver.library().parent
    where = ("--root", str(node), "--kubelet-dir", str(node / "kubelet"))
    assert examined(node) == ["DOCTOR_NODE_DRIVER"]
    healthy = hamictl("doctor", "node", *where, environment=driver.environment())
    assert healthy.stdout == "no problems found\n"
    lines = healthy.stderr.splitlines()
    assert "ok   driver 570.86.15, CUDA 12.8" in lines
    assert re.search(r"^GPU 0 .+: \d+ °C, [\d,]+ of [\d,]+ MiB used$", healthy.stderr, re.MULTILINE), lines

    driver.mismatch = True
    driver.write()
    assert examined(node, library=library, FAKE_NVML_STATE=str(driver.path)) == ["DOCTOR_NODE_NVML"]

    driver.mismatch, driver.rules = False, ["hang * -1"]
    driver.write()
    assert examined(node, library=library, FAKE_NVML_STATE=str(driver.path)) == ["DOCTOR_NODE_NVML"]

    old = tmp_path / "old"
    old.mkdir()
    (old / "nvml.c").write_text(
        "int nvmlInit_v2(void) { return 0; } int nvmlShutdown(void) { return 0; }"
        "int nvmlSystemGetDriverVersion(char *out, unsigned size) { out[0] = '3'; out[1] = 0; return size < 2; }"
    )
    c_compiler.build_library(old / "nvml.c", old / "libnvidia-ml.so.1")
    assert examined(node, library=old) == ["DOCTOR_NODE_DRIVER_OLD"]


@pytest.mark.parametrize("version", ['plugins."io.containerd.grpc.v1.cri"', 'plugins."io.containerd.cri.v1.runtime"'])
def test_a_runtime_that_is_told_to_ignore_cdi_is_found(node: pathlib.Path, version: str) -> None:
    """In either place that its configuration has for it; what is not written there is up to its version."""
    (node / "etc/containerd").mkdir()
    config = node / "etc/containerd/config.toml"
    for text, codes in (
        (f"[{version}]\nenable_cdi = false\n", ["DOCTOR_NODE_CDI_OFF"]),
        (f"[{version}]\nenable_cdi = true\n", []),
        (f"[{version}]\n", []),
        ("plugins = 7", []),
        ("{", []),
    ):
        config.write_text(text)
        assert examined(node) == ["DOCTOR_NODE_DRIVER", *codes]


def test_a_folder_of_mps_without_its_daemon_is_found(node: pathlib.Path) -> None:
    """Clients would wait for it."""
    pipes = node / "run/nvidia/mps/pipe"
    pipes.mkdir(parents=True)
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_MPS"]
    os.mkfifo(pipes / "control")
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_MPS"]
    reading = os.open(pipes / "control", os.O_RDONLY | os.O_NONBLOCK)
    assert examined(node) == ["DOCTOR_NODE_DRIVER"]
    os.close(reading)
    (pipes / "control").unlink()
    with socket.socket(socket.AF_UNIX) as daemon, contextlib.chdir(pipes):  # The path may be too long for a socket.
        daemon.bind("control")
        daemon.listen()
        assert examined(node) == ["DOCTOR_NODE_DRIVER"]
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_MPS"]


def test_an_mps_daemon_that_was_killed_leaves_its_compute_modes(node: pathlib.Path) -> None:
    """A GPU that serves one process only would reject every pod but the first."""
    (node / "run/nvidia/mps").mkdir(parents=True)
    (node / "run/nvidia/mps/compute-modes.json").write_text("{}")
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_MPS_MODES"]


def test_files_of_containers_that_the_kubelet_has_forgotten_are_found(
    node: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fill the disk of a node on which no plugin deletes them."""
    gone, here = (f"{digit * 8}-1111-2222-3333-444444444444" for digit in "ab")
    checkpoint = node / "kubelet/device-plugins/kubelet_internal_checkpoint"
    checkpoint.write_text(json.dumps({"Data": {"PodDeviceEntries": [{"PodUID": here}]}}))
    containers = node / "usr/local/vgpu/containers"
    for name in (f"{gone}_c", f"{here}_c", "mark_without_pod"):
        (containers / name).mkdir(parents=True)
    for uid in (gone, here):
        (node / f"run/cdi/hami-vgpu_d-1_{uid}.json").write_text("{}")
    assert examined(node) == ["DOCTOR_NODE_DRIVER"]  # They may be new.

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    examined_at = node_checks.Node(node, node / "kubelet")
    found = [one.detail for one in node_checks._leftovers(examined_at)]
    assert [detail.partition(" in ")[0] for detail in found] == ["1", "1"]
    assert all(gone in detail for detail in found)


def test_a_folder_that_takes_nothing_and_a_disk_that_is_full_are_found(node: pathlib.Path) -> None:
    """Before a container fails to start for it."""
    assert examined(node, "--least-free", "1000000000") == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_SPACE"]
    (node / "run/cdi").rmdir()
    (node / "run/cdi").touch()
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_FOLDER"]


def test_the_report_of_a_node_has_sizes_the_container_and_variables_without_secrets(node: pathlib.Path) -> None:
    """What a person asks first when a node misbehaves."""
    own = {"HAMI_EXTENDER": "http://127.0.0.1:1", "HAMI_TOKEN": "s3cret", "NODE_NAME": "gpu-7"}
    where = ("--root", str(node), "--kubelet-dir", str(node / "kubelet"))
    done = hamictl("doctor", "node", *where, "-o", "json", environment=own)

    report = json.loads(done.stdout)["report"]
    assert report["environment"].items() >= {**own, "HAMI_TOKEN": "(hidden)"}.items()
    assert "s3cret" not in done.stdout
    assert report["cpus"] >= 1
    assert report["memory_mib"] > report["memory_available_mib"] > 0
    assert all(one["size_mib"] >= one["free_mib"] for one in report["file_systems"])
    assert report["container"]["host_root"] == str(node)
    assert report["gpus"] == []


def test_a_node_is_examined_with_nothing_but_what_the_nodes_image_has(node: pathlib.Path) -> None:
    """People were sent to run it on the node, and no image had it."""
    absent = ("scheduler_extender", "webui", "lab", "numpy", "kubernetes", "rich", "uvicorn", "flask", "cryptography")
    program = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
        "from hamictl import __main__\nsys.exit(__main__.main())"
    )
    arguments = ("doctor", "node", "--root", str(node), "--kubelet-dir", str(node / "kubelet"), "-o", "name")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(node)},
    )  # fmt: skip

    assert done.stderr == ""
    assert done.stdout == "DOCTOR_NODE_DRIVER node\n"


@pytest.mark.parametrize(
    "runtime",
    [
        "run/containerd/containerd.sock", "run/crio/crio.sock", "run/cri-dockerd.sock",
        "run/k3s/containerd/containerd.sock", "run/k0s/containerd.sock",
        "var/snap/microk8s/common/run/containerd.sock",
    ],
)  # fmt: skip
def test_the_runtimes_of_small_distributions_are_known(node: pathlib.Path, runtime: str) -> None:
    """On MicroK8s, k0s and with cri-dockerd a healthy runtime was reported missing."""
    (node / "run/containerd/containerd.sock").unlink()
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_RUNTIME"]
    (node / runtime).parent.mkdir(parents=True, exist_ok=True)
    (node / runtime).touch()
    assert examined(node) == ["DOCTOR_NODE_DRIVER"]


@pytest.mark.parametrize(
    "path",
    [
        "etc/containerd/conf.d/nvidia.toml", "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        "var/lib/rancher/rke2/agent/etc/containerd/config.toml", "etc/k0s/containerd.d/nvidia.toml",
        "var/snap/microk8s/current/args/containerd.toml",
    ],
)  # fmt: skip
def test_their_configurations_are_read_too(node: pathlib.Path, path: str) -> None:
    """CDI that was off there was not found."""
    (node / path).parent.mkdir(parents=True, exist_ok=True)
    (node / path).write_text("[plugins.'io.containerd.cri.v1.runtime']\nenable_cdi = false\n")
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_CDI_OFF"]


@pytest.mark.parametrize(
    "kubelet", ["var/lib/kubelet", "var/lib/k0s/kubelet", "var/snap/microk8s/common/var/lib/kubelet"]
)
def test_the_kubelet_is_found_where_the_distribution_has_it(node: pathlib.Path, kubelet: str) -> None:
    """With k0s and MicroK8s one had to know `--kubelet-dir`."""
    (node / kubelet).parent.mkdir(parents=True, exist_ok=True)
    (node / "kubelet").rename(node / kubelet)
    done = hamictl("doctor", "node", "--root", str(node), "-o", "json", environment={"LD_LIBRARY_PATH": str(node)})
    assert [one["code"] for one in json.loads(done.stdout)["findings"]] == ["DOCTOR_NODE_DRIVER"]


@pytest.mark.parametrize("socket_name", ["nvidia-gpu.sock", "nvidiaGPU-1700000000.sock", "volcano-vgpu.sock"])
def test_another_plugin_on_the_node_is_found_by_its_socket(node: pathlib.Path, socket_name: str) -> None:
    """NVIDIA's, GKE's and Volcano's; one that a node's service runs has no pod at all."""
    (node / "kubelet/device-plugins" / socket_name).touch()
    assert examined(node) == ["DOCTOR_NODE_DRIVER", "DOCTOR_NODE_OTHER_PLUGIN"]


def test_another_plugin_on_the_node_is_found_by_what_the_kubelet_lists(node: pathlib.Path) -> None:
    """Its checkpoint has the resources of every plugin, whatever its socket is called."""
    checkpoint = node / "kubelet/device-plugins/kubelet_internal_checkpoint"
    for devices, codes in (
        ({"nvidia.com/gpu": ["GPU-1"], "rdma/hca": ["a"]}, []),
        ({"nvidia.com/gpu": ["GPU-1"], "volcano.sh/vgpu-number": ["a"]}, ["DOCTOR_NODE_OTHER_PLUGIN"]),
        ({"volcano.sh/vgpu-number": []}, []),
    ):
        checkpoint.write_text(json.dumps({"Data": {"PodDeviceEntries": None, "RegisteredDevices": devices}}))
        assert examined(node) == ["DOCTOR_NODE_DRIVER", *codes]
    checkpoint.write_text("{")
    assert examined(node) == ["DOCTOR_NODE_DRIVER"]
