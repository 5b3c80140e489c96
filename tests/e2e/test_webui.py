"""The WebUI on a real API server: with exactly its own rights, whoever looks sees what the cluster lets them list."""

import json
import pathlib
import urllib.error
import urllib.request
from typing import Any

from lab import gpus, webui_process
from tests.e2e import site as sites


def test_a_user_sees_the_namespaces_whose_pods_they_may_list(own_site: sites.Site, tmp_path: pathlib.Path) -> None:
    """By real tokens of service accounts and real roles; a pod's story is what the API server keeps of it."""
    assert own_site.plane is not None
    assert own_site.extender is not None
    api = own_site.api
    own_site.add_nodes(gpus.gpu_node("one", gpus.A100, 1))
    tokens = {}
    for team in ("team-a", "team-b"):
        api("POST", "/api/v1/namespaces", {"metadata": {"name": team}})
        api("POST", f"/api/v1/namespaces/{team}/serviceaccounts", {"metadata": {"name": "ada"}})
        made = api("POST", f"/api/v1/namespaces/{team}/serviceaccounts/ada/token", {"spec": {"expirationSeconds": 600}})
        tokens[team] = made["status"]["token"]
        body = own_site.pod_body("train", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"})
        api("POST", f"/api/v1/namespaces/{team}/pods", body)
    large = own_site.pod_body("large", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "999000"})
    api("POST", "/api/v1/namespaces/team-a/pods", large)
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/team-a"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    api("POST", f"{rbac}/roles", {"metadata": {"name": "look"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "ada", "namespace": "team-a"}
    reference = {"kind": "Role", "name": "look", "apiGroup": "rbac.authorization.k8s.io"}
    api("POST", f"{rbac}/rolebindings", {"metadata": {"name": "look"}, "subjects": [subject], "roleRef": reference})

    process = webui_process.WebUIProcess(
        tmp_path,
        f"http://{own_site.extender.api}",
        "--auth",
        "kubernetes",
        "--monitor-service",
        "default/m:41991",
        "--kubeconfig",
        str(own_site.plane.kubeconfig("webui")),
    )
    with webui_process.running(process) as webui:

        def get(path: str, token: str) -> tuple[int, Any]:
            request = urllib.request.Request(f"{webui.url}{path}", headers={"Authorization": f"Bearer {token}"})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as refused:
                return refused.code, refused.read().decode()

        def pods(token: str) -> list[tuple[str, str, str]]:
            status, body = get("/api/v1/pods", token)
            assert status == 200, body
            return [(one["namespace"], one["name"], one["state"]) for one in json.loads(body)["items"]]

        admin = own_site.plane.token("admin")
        sites.wait_for(lambda: len([one for one in pods(admin) if one[2] != "pending"]) == 2, 60)
        assert {one[0] for one in pods(tokens["team-a"])} == {"team-a"}
        assert "team-b/train" not in get("/nodes/one", tokens["team-a"])[1]
        assert get("/pods/team-b/train", tokens["team-a"])[0] == 404
        status, text = get("/pods", tokens["team-b"])
        assert (status, "may list the pods of no namespace" in text) == (403, True)
        assert get("/api/v1/pods", "made-up")[0] == 401

        def story(name: str) -> str:
            return str(get(f"/pods/team-a/{name}", tokens["team-a"])[1])

        sites.wait_for(lambda: "Successfully assigned" in story("train"), 60, lambda: story("train"))
        sites.wait_for(lambda: "0/1 nodes available" in story("large"), 60, lambda: story("large"))
        assert "Its events cannot be read" not in story("train")
        log = process.log_file.read_text()
        assert "there are no monitors" in log
        assert not any(token in log for token in tokens.values())
