"""Who reads the read API off loopback: accounts of a real API server, with the roles that the chart installs."""

import json
import pathlib
import ssl
import urllib.error
import urllib.request
from typing import Any

from gpu_sharing.core import allocations, identifiers, records
from lab import extender_process, gpus
from lab.real import control_plane
from tests.e2e import site as sites
from tests.e2e import test_chart

RBAC = "/apis/rbac.authorization.k8s.io/v1"
VIEW = "system:aggregate-to-view"
PATHS = ("cluster", "nodes", "pods", "explain/mine/waits", "events/mine/waits", "openapi.json")


def token(plane: control_plane.ControlPlane, namespace: str, name: str) -> str:
    """The token of a new service account."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    plane.api("POST", accounts, {"metadata": {"name": name}})
    made = plane.api("POST", f"{accounts}/{name}/token", {"spec": {"expirationSeconds": 3600}})
    return str(made["status"]["token"])


def bind(plane: control_plane.ControlPlane, role: str, account: str, namespace: str = "") -> None:
    """Give a ClusterRole to a service account `NAMESPACE/NAME`, in a namespace or everywhere."""
    home, _, name = account.partition("/")
    body = {
        "metadata": {"name": f"{role.rpartition(':')[2]}-{name}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": home}],
    }
    path = f"namespaces/{namespace}/rolebindings" if namespace else "clusterrolebindings"
    plane.api("POST", f"{RBAC}/{path}", body)


def read(extender: extender_process.ExtenderProcess, path: str, bearer: str) -> tuple[int, Any]:
    url = f"https://localhost:{extender.api.rpartition(':')[2]}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"})
    try:
        with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def names(answer: tuple[int, Any]) -> list[str]:
    return [f"{one['namespace']}/{one['name']}" for one in answer[1]["pods"]]


def add_pods(plane: control_plane.ControlPlane) -> None:
    """One that waits in the namespace `mine`, one that holds the GPU in `theirs`."""
    share = ((allocations.Share(gpus.gpu_uuid("one", 0), 60_000, 0),),)
    record = records.pod_annotations(share, identifiers.NodeName("one"), 0, identifiers.DecisionId("d"))
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "60000"}
    container = {"name": "c", "image": "x", "resources": {"limits": limits}}
    spec = {"schedulerName": "hami-scheduler", "containers": [container]}
    for namespace, name, more in (("mine", "waits", {}), ("theirs", "holds", {"nodeName": "one"})):
        plane.api("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        metadata = {"name": name, "annotations": record if more else {}}
        plane.api("POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": {**spec, **more}})


def test_an_account_reads_what_its_roles_say_and_no_more(programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Kubernetes grants `/api/*` to every authenticated account; pods need a rule."""
    with control_plane.running(tmp_path) as plane:
        control_plane.add_nodes(plane.api, [gpus.gpu_node("one", gpus.A100, 1)])
        add_pods(plane)
        done = test_chart.Installation(plane, 4).install()
        assert done.returncode == 0, done.stderr
        bare, tenant, operator = (token(plane, "mine", name) for name in ("bare", "tenant", "operator"))
        bind(plane, "hami-reader", "mine/tenant")
        # What `view` is made of: the controller that puts it together is not part of this control plane.
        bind(plane, VIEW, "mine/tenant", "mine")
        bind(plane, "hami-reader", "mine/operator")
        bind(plane, VIEW, "mine/operator")
        with test_chart.extender_of(plane, tmp_path) as extender:
            sites.wait_for(lambda: read(extender, "/api/v1/pods", operator)[0] == 200, 60, extender.log_file.read_text)

            for path in PATHS:
                status, answer = read(extender, f"/api/v1/{path}", bare)
                assert (status, answer["error_code"]) == (403, "SCHED_READ_FORBIDDEN"), path
                assert "system:serviceaccount:mine:bare may not get gpus.hami.io" in answer["message"]
            for spelled in ("/api%2Fv1%2Fcluster/x/pods", "/api/v1%2Fpods", "/api/v1/x/../pods"):
                assert read(extender, spelled, bare)[0] == 403
                assert read(extender, spelled, operator)[0] == 404

            assert names(read(extender, "/api/v1/pods", tenant)) == ["mine/waits"]
            explained = read(extender, "/api/v1/explain/mine/waits", tenant)[1]
            assert explained["nodes"][0]["waits_for"] == ["1 of other namespaces"]
            for path in ("explain/theirs/holds", "events/theirs/holds"):
                status, answer = read(extender, f"/api/v1/{path}", tenant)
                assert (status, answer["error_code"]) == (403, "SCHED_READ_FORBIDDEN")
                assert "may not list pods in namespace theirs" in answer["message"]

            webui = json.loads(test_chart.account(plane, "hami-webui", tmp_path).read_text())
            for bearer in (operator, webui["users"][0]["user"]["token"]):
                assert names(read(extender, "/api/v1/pods", bearer)) == ["mine/waits", "theirs/holds"]
            assert read(extender, "/api/v1/pods", "invented-token")[0] == 401
