"""The fault injection service on a real API server: what it writes is valid there, with exactly the chart's rights."""

import asyncio
import pathlib
from typing import Any

import orjson

from fault_injector import agent, consent
from fault_injector.backends import kmsg
from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import faults
from lab import gpus
from tests.chart import rendering
from tests.component.test_fault_backends import PARTITION, Controller
from tests.e2e import site as sites

NAMESPACE = "hami-system"
PATHS = {
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles",
    "RoleBinding": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings",
}


def install_accounts(site: sites.Site) -> None:
    """Create the accounts of the chart, with their roles."""
    if NAMESPACE not in {one["metadata"]["name"] for one in site.api("GET", "/api/v1/namespaces")["items"]}:
        site.api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for one in rendering.objects(4, "--set", "faultInjection.enabled=true"):
        if "hami-fault" in one["metadata"]["name"] and one["kind"] in PATHS:
            site.api("POST", PATHS[one["kind"]], one)


def kubeconfig(site: sites.Site, account: str, folder: pathlib.Path) -> pathlib.Path:
    """Return the kubeconfig of an account of the chart."""
    assert site.plane is not None
    made = site.api("POST", f"{PATHS['ServiceAccount']}/{account}/token", {"spec": {"expirationSeconds": 600}})
    config = orjson.loads(site.plane.kubeconfig("admin").read_bytes())
    config["users"][0]["user"] = {"token": made["status"]["token"]}
    path = folder / account
    path.write_bytes(orjson.dumps(config))
    return path


def test_partitions_and_xids_work_with_the_charts_rights(own_site: sites.Site, tmp_path: pathlib.Path) -> None:
    """A missing right, or an object that a real API server refuses, would show only on a user's cluster."""
    install_accounts(own_site)
    own_site.add_nodes(gpus.gpu_node("n", gpus.A100, 1, labels={faults.CONSENT_LABEL: faults.CONSENT}))
    own_site.add_nodes(gpus.gpu_node("closed", gpus.A100, 1))
    information = tmp_path / "gpus" / "0000:3b:00.0" / "information"
    information.parent.mkdir(parents=True)
    information.write_text(f"GPU UUID: \t {gpus.gpu_uuid('n', 0)}\nBus Location: \t 0000:3b:00.0\n")
    log = tmp_path / "kmsg"
    log.touch()
    controller = Controller(kubeconfig(own_site, "hami-fault-injector", tmp_path), tmp_path / "log")
    controller.start()
    controller.wait_ready()
    try:
        status, answer = controller.post("network/inject", PARTITION)
        assert status == 201, answer
        policies = f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies"
        assert len(own_site.api("GET", policies)["items"]) == 2
        controller.kill()
        controller.start()
        controller.wait_ready()
        assert controller.post("f1/recover", {})[1]["state"] == "recovered"
        assert own_site.api("GET", policies)["items"] == []

        refused = controller.post("gpu/xid-79", {"node": "closed", "gpu": 0})
        assert (refused[0], refused[1]["error_code"]) == (403, "FAULT_NO_CONSENT")
        status, answer = asyncio.run(
            _with_agent(own_site, controller, kmsg.KernelLog(log, tmp_path / "gpus"), tmp_path)
        )
        assert status == 201, answer
        assert "NVRM: Xid (PCI:0000:3b:00): 79" in log.read_text()
    finally:
        controller.stop()


async def _with_agent(
    site: sites.Site, controller: Controller, backend: kmsg.KernelLog, folder: pathlib.Path
) -> tuple[int, dict[str, Any]]:
    """Inject XID 79 while the agent of node n runs with its own account, and recover it."""
    maps = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    paths = (f"{maps}/hami-faults", f"{maps}/hami-faults-results")
    async with kubernetes.Client(kubeconfig(site, "hami-fault-agent", folder), "hami-fault-injector") as client:
        works = asyncio.create_task(agent.Agent(client, "n", [backend], consent.NodeLabels(client), paths).run())
        try:
            injected = await asyncio.to_thread(controller.post, "gpu/xid-79", {"node": "n", "gpu": 0})
            recovered = await asyncio.to_thread(controller.post, "cleanup", {})
            assert recovered[0] == 200, recovered
            return injected
        finally:
            works.cancel()
