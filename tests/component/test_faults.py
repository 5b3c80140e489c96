"""Faults that are injected over HTTP into a lab cluster: the product reacts, and is well again after recovery."""

import json
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_sharing.core import faults, records
from lab import cluster as clusters
from lab import fault_backends, fault_service, gpu_nodes, gpus, kinds
from tests.component import calls

pytestmark = [pytest.mark.component, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[clusters.Cluster]:
    """With a node that permits faults, and one that does not."""
    consent = {faults.CONSENT_LABEL: faults.CONSENT}
    nodes = [gpus.gpu_node("willing", gpus.A100, 2, labels=consent), gpus.gpu_node("closed", gpus.A100, 1)]
    with clusters.running(nodes, plugins=True) as running:
        yield running


@pytest.fixture
def service(cluster: clusters.Cluster, tmp_path: pathlib.Path) -> Iterator[fault_service.FaultService]:
    nodes = {
        name: fault_backends.FakeNode(node)
        for name, node in cluster.gpu_nodes.items()
        if isinstance(node, gpu_nodes.GpuNode)
    }
    backends = [fault_backends.LabGpus(nodes)]
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
    ({"kind": "xid", "xid": 79}, "fallen off the bus"),
    ({"kind": "xid", "xid": 48}, "XID 48"),
    ({"kind": "xid", "xid": 119}, "XID 119"),
    ({"kind": "lost"}, "fallen off the bus"),
    ({"kind": "hang"}, "did not answer"),
    ({"kind": "reset"}, "refuses calls until the GPU is reset"),
    ({"kind": "ecc", "count": 3}, "uncorrected ECC errors"),
    ({"kind": "overheat", "celsius": 99}, "99 °C"),
    ({"kind": "throttle", "reason": "power-brake"}, "power brake"),
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
