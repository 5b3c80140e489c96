"""Faults that are injected over HTTP into a lab cluster: the product reacts, and is well again after recovery."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpu_sharing.core import faults, records
from lab import cluster as clusters
from lab import fault_backends, fault_service, gpu_nodes, gpus, kinds
from lab import faults as api_faults
from tests.component import calls

pytestmark = [pytest.mark.component, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[clusters.Cluster]:
    """With a node that permits faults, and one that does not."""
    consent = {faults.CONSENT_LABEL: faults.CONSENT}
    nodes = [gpus.gpu_node("willing", gpus.A100, 2, labels=consent), gpus.gpu_node("closed", gpus.A100, 1)]
    with clusters.running(nodes, plugins=True, linked=True) as running:
        yield running


@pytest.fixture
def service(cluster: clusters.Cluster, tmp_path: pathlib.Path) -> Iterator[fault_service.FaultService]:
    backends = fault_backends.of_cluster(cluster, {"extender": cluster.extender})
    with fault_service.running(cluster.kubeconfig, tmp_path / "faults.json", backends) as running:
        yield running


def call(service: fault_service.FaultService, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """Return the status and the decoded answer."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{service.url}{path}", method=method, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def inject(service: fault_service.FaultService, group: str, **body: Any) -> dict[str, Any]:
    status, answer = call(service, "POST", f"/api/v1/faults/{group}/inject", body)
    assert status == 201, answer
    injected: dict[str, Any] = answer
    return injected


def unhealthy(cluster: clusters.Cluster, node: str = "willing") -> dict[str, str]:
    """Why GPUs of a node are unhealthy, by UUID, as its device plugin has published it."""
    found = next(one for one in cluster.all(kinds.NODES) if one["metadata"]["name"] == node)
    return {str(uuid): why for uuid, why in records.decode_unhealthy_reasons(
        found["metadata"]["annotations"].get(records.HEALTH, "")
    ).items()}  # fmt: skip


UNHEALTHY_KINDS: list[tuple[dict[str, Any], str]] = [
    # A restart of the node, which ends XID 79 and a lost GPU, also ends the longer wait after each failure.
    ({"kind": "ecc", "count": 3}, "uncorrected ECC errors"),
    ({"kind": "overheat", "celsius": 99}, "99 °C"),
    ({"kind": "xid", "xid": 79}, "fallen off the bus"),
    ({"kind": "throttle", "reason": "power-brake"}, "power brake"),
    ({"kind": "hang"}, "did not answer"),
    ({"kind": "lost"}, "fallen off the bus"),
    ({"kind": "xid", "xid": 48}, "XID 48"),
    ({"kind": "xid", "xid": 119}, "XID 119"),
    ({"kind": "reset"}, "refuses calls until the GPU is reset"),
]


@pytest.mark.parametrize(("body", "cause"), UNHEALTHY_KINDS)
def test_a_gpu_becomes_unhealthy_and_is_well_again_after_recovery(
    cluster: clusters.Cluster, service: fault_service.FaultService, body: dict[str, Any], cause: str
) -> None:
    """The whole way: HTTP, driver, device plugin, annotation; the other GPU is not affected."""
    uuid = gpus.gpu_uuid("willing", 0)
    calls.eventually(lambda: not unhealthy(cluster))
    injected = inject(service, "gpu", node="willing", gpu=0, **body)

    assert injected["state"] == "injected"
    assert injected["target"] == f"willing/{uuid}"
    calls.eventually(lambda: cause in unhealthy(cluster).get(uuid, "") and len(unhealthy(cluster)) == 1)
    status, recovered = call(service, "POST", f"/api/v1/faults/{injected['id']}/recover")
    assert (status, recovered["state"]) == (200, "recovered")
    calls.eventually(lambda: not unhealthy(cluster))


def test_pods_see_what_is_used_under_pressure(cluster: clusters.Cluster, service: fault_service.FaultService) -> None:
    """Memory pressure and saturation change what the driver measures, and no GPU's health."""
    node, uuid = cluster.gpu_nodes["willing"], gpus.gpu_uuid("willing", 1)
    assert isinstance(node, gpu_nodes.GpuNode)
    memory = inject(service, "gpu", kind="memory-pressure", node="willing", gpu=1, percent=50)
    cores = inject(service, "gpu", kind="saturation", node="willing", gpu=1, percent=90)
    hot = inject(service, "gpu", kind="throttle", node="willing", gpu=1)

    used = node.gpus.usage(uuid)
    assert used.memory_used_bytes == gpus.A100.memory_mib * 2**20 // 2
    assert used.utilization_percent == 90.0
    assert used.temperature_celsius == 90.0
    for one in (cores, memory, hot):
        assert call(service, "POST", f"/api/v1/faults/{one['id']}/recover")[0] == 200
    assert node.gpus.usage(uuid) == node.gpus.idle(uuid)


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/api/v1/faults/gpu/inject", b"{", 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/inject", b"", 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/inject", b"[]", 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/inject", b"[" * 10_000, 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/inject", b"1" * 20_000, 413, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/inject", {"kind": "xid", "node": "willing", "gpu": 0}, 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/inject", {"kind": "overheet"}, 400, "FAULT_UNKNOWN_KIND"),
    ("POST", "/api/v1/faults/gpu/inject", {"kind": "kill", "process": "x"}, 400, "FAULT_UNKNOWN_KIND"),
    ("POST", "/api/v1/faults/gpu/xid-79", {"node": "willing", "gpu": 0, "xid": 48}, 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/gpu/xid-79", {"node": "closed", "gpu": 0}, 403, "FAULT_NO_CONSENT"),
    ("POST", "/api/v1/faults/gpu/xid-79", {"node": "ghost", "gpu": 0}, 422, "FAULT_NO_TARGET"),
    ("POST", "/api/v1/faults/gpu/xid-79", {"node": "willing", "gpu": 9}, 422, "FAULT_NO_TARGET"),
    ("POST", "/api/v1/faults/gpu/xid-80", {"node": "willing", "gpu": 0}, 404, "FAULT_ROUTE"),
    ("POST", "/api/v1/faults/network/inject", {"kind": "partition", "pair": "plugin-kubelet"}, 422, "FAULT_NO_TARGET"),
    (
        "POST", "/api/v1/faults/network/inject", {"kind": "packet-loss", "pair": "ui-extender", "loss_percent": 5}, 501,
        "FAULT_NOT_SUPPORTED",
    ),
    ("POST", "/api/v1/faults/process/inject", {"kind": "kill", "process": "extendr"}, 422, "FAULT_NO_TARGET"),
    ("POST", "/api/v1/faults/api/inject", {"kind": "api-error", "status": 200}, 400, "FAULT_INVALID"),
    ("POST", "/api/v1/faults/f99/recover", None, 404, "FAULT_UNKNOWN"),
    ("GET", "/api/v1/faults/f99", None, 404, "FAULT_UNKNOWN"),
    ("GET", "/api/v1/faults/gpu/inject", None, 405, "FAULT_ROUTE"),
    ("DELETE", "/api/v1/faults", None, 405, "FAULT_ROUTE"),
    ("GET", "/api/v1/faults/..", None, 404, "FAULT_ROUTE"),
    ("GET", "/api/v1/metrics/weather", None, 404, "FAULT_ROUTE"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), BAD)
def test_nonsense_is_refused_before_anything_happens(
    service: fault_service.FaultService, method: str, path: str, body: Any, status: int, code: str
) -> None:
    """Each refusal has a code, and leaves no trace in the record."""
    answered, answer = call(service, method, path, body)

    assert (answered, answer["error_code"]) == (status, code), answer
    assert call(service, "GET", "/api/v1/faults") == (200, {"faults": []})


def test_a_collision_is_refused_with_the_other_faults_id(service: fault_service.FaultService) -> None:
    """Index and UUID of one GPU are the same target."""
    first = inject(service, "gpu", kind="hang", node="willing", gpu=1)
    uuid = gpus.gpu_uuid("willing", 1)
    status, answer = call(service, "POST", "/api/v1/faults/gpu/xid-48", {"node": "willing", "gpu": uuid})

    assert (status, answer["error_code"]) == (409, "FAULT_COLLIDES")
    assert first["id"] in answer["message"]
    assert len(call(service, "GET", "/api/v1/faults")[1]["faults"]) == 1


def test_a_web_page_cannot_inject(service: fault_service.FaultService) -> None:
    """A browser on the same machine reaches loopback; an origin or a foreign name give its requests away."""
    body = {"node": "willing", "gpu": 0}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        status, answer = call(service, "POST", "/api/v1/faults/gpu/xid-79", body, **headers)
        assert (status, answer["error_code"]) == (403, "FAULT_FORBIDDEN")


def test_a_duration_recovers_a_fault_by_itself(cluster: clusters.Cluster, service: fault_service.FaultService) -> None:
    """A forgotten fault ends."""
    injected = inject(service, "gpu", kind="reset", node="willing", gpu=1, duration_seconds=1)

    path = f"/api/v1/faults/{injected['id']}"
    calls.eventually(lambda: call(service, "GET", path)[1]["state"] == "recovered")


def test_scenarios_read_their_numbers_from_the_service(
    cluster: clusters.Cluster, service: fault_service.FaultService
) -> None:
    """The checks of a scenario need no client of Kubernetes."""
    calls.eventually(lambda: not unhealthy(cluster))
    assert call(service, "GET", "/api/v1/metrics/gpu")[1]["gpus"] == 3
    injected = inject(service, "gpu", kind="lost", node="willing", gpu=1)
    calls.eventually(lambda: call(service, "GET", "/api/v1/metrics/gpu")[1]["unhealthy"] == 1)
    assert list(call(service, "GET", "/api/v1/metrics/gpu")[1]["causes"]) == [gpus.gpu_uuid("willing", 1)]
    health = call(service, "GET", "/api/v1/metrics/node-health")[1]
    assert (health["nodes"], health["ready"], health["cordoned"]) == (2, 2, 0)
    create_pod(cluster, "measured")
    calls.eventually(lambda: call(service, "GET", "/api/v1/metrics/scheduling")[1]["running"] == 1)
    network = call(service, "GET", "/api/v1/metrics/network")[1]
    assert network["apiserver_answers"]
    assert network["faults_in_effect"] == []
    assert call(service, "POST", "/api/v1/faults/cleanup")[1]["faults"][0]["id"] == injected["id"]
    delete_pod(cluster, "measured")


def create_pod(cluster: clusters.Cluster, name: str) -> None:
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"}
    container = {"name": "main", "image": "busybox", "resources": {"limits": limits}}
    spec = {"schedulerName": "hami-scheduler", "containers": [container]}
    cluster.create(kinds.PODS, {"metadata": {"name": name}, "spec": spec})


def delete_pod(cluster: clusters.Cluster, name: str) -> None:
    cluster.server.request("DELETE", f"/api/v1/namespaces/default/pods/{name}")
    calls.eventually(lambda: find_pod(cluster, name) is None)


def find_pod(cluster: clusters.Cluster, name: str) -> dict[str, Any] | None:
    return next((one for one in cluster.all(kinds.PODS) if one["metadata"]["name"] == name), None)


def runs(cluster: clusters.Cluster, name: str) -> bool:
    pod = find_pod(cluster, name)
    return pod is not None and pod["status"]["phase"] == "Running"


def test_probes_and_metrics_are_answered_beside_the_api(service: fault_service.FaultService) -> None:
    """In the lab one address is enough."""
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=60) as answer:
        assert b"hami_fault_injections_total" in answer.read()
    assert call(service, "GET", "/health")[1]["components"]["record"]["healthy"]
    assert call(service, "GET", "/openapi.json")[1]["info"]["title"] == "GPU sharing fault injection API"


BINDINGS = {"method": "POST", "path": "/api/v1/namespaces/default/pods/"}
STOPPING: list[tuple[str, dict[str, Any]]] = [
    ("api", {"kind": "api-error", "status": "503", **BINDINGS}),
    ("api", {"kind": "api-error", "status": "409", **BINDINGS}),
    ("api", {"kind": "api-error", "status": "429", **BINDINGS}),
    ("network", {"kind": "partition", "pair": "scheduler-extender"}),
    ("network", {"kind": "partition", "pair": "extender-apiserver"}),
    ("process", {"kind": "stop", "process": "extender"}),
    ("process", {"kind": "kill", "process": "extender"}),
]


@pytest.mark.parametrize(("group", "body"), STOPPING)
def test_no_pod_is_bound_during_the_fault_and_all_after_it(
    cluster: clusters.Cluster, service: fault_service.FaultService, group: str, body: dict[str, Any]
) -> None:
    """What the product promises of each of these, seen by its API objects alone."""
    injected = inject(service, group, **body)
    create_pod(cluster, "waits")

    assert call(service, "GET", "/api/v1/metrics/scheduling")[1]["pending"] == 1  # The service itself is spared.
    pod = find_pod(cluster, "waits")
    assert pod is not None
    assert not pod["spec"].get("nodeName")
    status, answer = call(service, "POST", f"/api/v1/faults/{injected['id']}/recover")
    assert (status, answer["state"]) == (200, "recovered")
    calls.eventually(lambda: runs(cluster, "waits"))
    delete_pod(cluster, "waits")


GOING_ON: list[tuple[str, dict[str, Any]]] = [
    ("api", {"kind": "api-error", "status": "500", "share_percent": 30}),
    ("api", {"kind": "api-latency", "latency_ms": 50}),
    ("api", {"kind": "api-lost-answer", "share_percent": 50, **BINDINGS}),
    ("api", {"kind": "watch-drop"}),
    ("api", {"kind": "watch-silent"}),
    ("network", {"kind": "network-latency", "pair": "scheduler-extender", "latency_ms": 20}),
    ("network", {"kind": "partition", "pair": "ui-extender"}),
    ("process", {"kind": "slow", "process": "extender", "percent": 50}),
]


@pytest.mark.parametrize(("group", "body"), GOING_ON)
def test_pods_are_bound_despite_a_fault(
    cluster: clusters.Cluster, service: fault_service.FaultService, group: str, body: dict[str, Any]
) -> None:
    """These slow the product, and do not stop it."""
    injected = inject(service, group, **body)
    for _ in range(20):  # Of a share of the calls, this one may be refused too.
        with contextlib.suppress(urllib.error.HTTPError):
            create_pod(cluster, "goes-on")
            break

    calls.eventually(lambda: (find_pod(cluster, "goes-on") or {"spec": {}})["spec"].get("nodeName"))
    assert call(service, "POST", f"/api/v1/faults/{injected['id']}/recover")[0] == 200
    calls.eventually(lambda: runs(cluster, "goes-on"))
    delete_pod(cluster, "goes-on")


def test_stale_reads_show_the_past_until_they_are_recovered(
    cluster: clusters.Cluster, service: fault_service.FaultService
) -> None:
    """As from a cache of an API server that lags behind."""

    def names() -> list[str]:
        nodes = cluster.server.request("GET", "/api/v1/nodes")["items"]
        return [node["metadata"]["name"] for node in nodes]

    injected = inject(service, "api", kind="stale-reads")
    cluster.create(kinds.NODES, gpus.gpu_node("newer", gpus.A100, 0))
    assert names() == ["closed", "willing"]
    assert call(service, "POST", f"/api/v1/faults/{injected['id']}/recover")[0] == 200
    assert names() == ["closed", "newer", "willing"]
    cluster.server.request("DELETE", "/api/v1/nodes/newer")


def test_a_share_of_the_calls_is_spread_evenly() -> None:
    """A scenario with 30 % of failing calls is the same at each run."""
    fault = api_faults.Lasting(share=0.3, path="/api")

    affected = [fault.affects("GET", "/api/v1/nodes") for _ in range(10)]
    assert sum(affected) == 3
    assert affected == [fault.affects("POST", "/api/v1/nodes") for _ in range(10)]
    assert not fault.affects("GET", "/version")


@pytest.fixture
def command(service: fault_service.FaultService) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`hamictl fault` as a shell runs it."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hamictl", "fault", *arguments],
            capture_output=True, text=True, timeout=120, env={**os.environ, "HAMI_FAULTS": service.url},
        )  # fmt: skip

    return run


def test_hamictl_injects_lists_and_recovers(
    cluster: clusters.Cluster, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The commands of the tutorial."""
    calls.eventually(lambda: not unhealthy(cluster))
    assert command("cleanup").stdout == "no fault is in effect\n"
    injected = command("inject", "xid-79", "--node", "willing", "--gpu", "0", "--seconds", "300")
    assert (injected.returncode, injected.stderr) == (0, "")
    assert injected.stdout.startswith(f"f1 is injected: xid on willing/{gpus.gpu_uuid('willing', 0)}, for 300 s\n")
    calls.eventually(lambda: unhealthy(cluster))
    assert "injected" in command("list").stdout
    assert json.loads(command("show", "f1", "-o", "json").stdout)["values"]["xid"] == 79
    assert command("recover", "f1").stdout.startswith("f1 is recovered: xid on willing/")
    calls.eventually(lambda: not unhealthy(cluster))


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (("inject", "overheet", "--node", "a"), 1, "FAULT_UNKNOWN_KIND: no kind of fault is named 'overheet'; did you"),
        (("inject", "xid", "--node", "willing", "--gpu", "0", "--xid", "many"), 1, "FAULT_INVALID: xid: 'many'"),
        (("inject", "xid-79", "--node", "closed", "--gpu", "0"), 1, "FAULT_NO_CONSENT: kubectl label node closed"),
        (("inject", "xid-79", "--node", "wiling", "--gpu", "0"), 1, "did you mean willing?"),
        (("inject",), 2, "inject needs one KIND"),
        (("recover", "f99"), 1, "FAULT_UNKNOWN: no fault has the id 'f99'"),
        (("recover",), 2, "recover needs an ID"),
        (("show",), 2, "show needs one ID"),
        (("inyect", "xid-79"), 2, "no action inyect; did you mean inject?"),
        (("list", "--faults", "http://127.0.0.1:1"), 2, "no answer from http://127.0.0.1:1"),
    ],
)  # fmt: skip
def test_hamictl_says_what_is_wrong_in_one_sentence(
    command: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...], status: int, part: str
) -> None:
    """With the code, or with what to write, and with an exit status for scripts."""
    done = command(*arguments)

    assert (done.returncode, done.stdout) == (status, "")
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stop_of_the_service_recovers_everything(cluster: clusters.Cluster, tmp_path: pathlib.Path) -> None:
    """`Ctrl-C` of the demo leaves no GPU broken."""
    node = cluster.gpu_nodes["willing"]
    assert isinstance(node, gpu_nodes.GpuNode)
    backend = fault_backends.LabGpus({"willing": fault_backends.FakeNode(node)})
    with fault_service.running(cluster.kubeconfig, tmp_path / "faults.json", [backend]) as service:
        inject(service, "gpu", kind="hang", node="willing", gpu=1)

    assert node.gpus.readings[gpus.gpu_uuid("willing", 1)].answered
    document = faults.decode((tmp_path / "faults.json").read_text())
    assert [fault.state for fault in document.faults] == [faults.State.RECOVERED]
