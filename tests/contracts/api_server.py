"""What this project relies on an API server for. Runs against the lab and against a real kube-apiserver alike.

A test module makes a fixture `api` of `client.Api` and imports everything from here.
"""

import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any
from urllib import parse

import pytest

from lab.real import build, client

MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
PODS = "/api/v1/namespaces/default/pods"


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4000"}
    return {
        "metadata": {"name": name, **metadata},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "c", "image": "i", "resources": {"limits": limits}}],
        },
    }


@pytest.fixture
def name() -> str:
    return f"p-{uuid.uuid4().hex[:8]}"


def refusal(api: client.Api, *call: Any) -> tuple[int, str]:
    """The status and message of a refused call; a path that no group serves is refused in plain text."""
    with pytest.raises(client.Refused) as refused:
        api(*call)
    body = refused.value.body
    return refused.value.status, body["message"] if isinstance(body, dict) else body


def watch(api: client.Api, path: str, seconds: int = 3) -> Iterator[dict[str, Any]]:
    """The events of a watch until it ends."""
    connection = api._connection()
    headers = {"Authorization": f"Bearer {api._token}"}
    connection.request("GET", f"{path}&watch=true&timeoutSeconds={seconds}", headers=headers)
    answer = connection.getresponse()
    try:
        for line in answer:
            yield json.loads(line)
    finally:
        connection.close()


def test_creation_gives_identity_defaults_and_canonical_quantities(api: client.Api, name: str) -> None:
    """`4000` comes back as `4k`, which is why we read it so."""
    made = api("POST", PODS, pod(name))

    assert made["metadata"]["uid"]
    assert made["metadata"]["resourceVersion"]
    assert made["status"]["phase"] == "Pending"
    assert made["spec"]["containers"][0]["resources"]["requests"] == {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4k"}
    assert made["spec"]["priority"] == 0
    assert refusal(api, "POST", PODS, pod(name))[0] == 409
    assert refusal(api, "GET", f"{PODS}/absent-{name}")[0] == 404


def test_a_write_against_an_old_version_is_a_conflict(api: client.Api, name: str) -> None:
    """Optimistic locking, by PUT and by PATCH."""
    first = api("POST", PODS, pod(name))
    api("PATCH", f"{PODS}/{name}", {"metadata": {"labels": {"a": "1"}}}, MERGE)

    assert refusal(api, "PUT", f"{PODS}/{name}", first)[0] == 409
    old = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"], "labels": {"a": "2"}}}
    assert refusal(api, "PATCH", f"{PODS}/{name}", old, MERGE)[0] == 409
    assert refusal(api, "PATCH", f"{PODS}/{name}", {"metadata": {"uid": str(uuid.uuid4())}}, MERGE)[0] in (409, 422)


def test_the_three_kinds_of_patch(api: client.Api, name: str) -> None:
    """Merge removes by null, JSON patch tests, strategic merge merges conditions by type, new ones first."""
    api("POST", PODS, pod(name, labels={"a": "1", "b": "1"}))

    merged = api("PATCH", f"{PODS}/{name}", {"metadata": {"labels": {"a": None, "c": "1"}}}, MERGE)
    assert merged["metadata"]["labels"] == {"b": "1", "c": "1"}
    tested = [
        {"op": "test", "path": "/metadata/labels/b", "value": "1"},
        {"op": "remove", "path": "/metadata/labels/b"},
    ]
    assert api("PATCH", f"{PODS}/{name}", tested, JSON_PATCH)["metadata"]["labels"] == {"c": "1"}
    assert refusal(api, "PATCH", f"{PODS}/{name}", tested, JSON_PATCH)[0] == 422
    for kind in ("One", "Two"):
        condition = {"type": f"example.com/{kind}", "status": "True"}
        patched = api("PATCH", f"{PODS}/{name}/status", {"status": {"conditions": [condition]}}, STRATEGIC)
    assert [one["type"] for one in patched["status"]["conditions"]] == ["example.com/Two", "example.com/One"]


def test_status_and_spec_are_written_apart(api: client.Api, name: str) -> None:
    """A write of the object leaves the status alone, and the other way round."""
    api("POST", PODS, pod(name))

    api("PATCH", f"{PODS}/{name}", {"status": {"nominatedNodeName": "n"}}, MERGE)
    assert "nominatedNodeName" not in api("GET", f"{PODS}/{name}")["status"]
    api("PATCH", f"{PODS}/{name}/status", {"status": {"nominatedNodeName": "n"}}, MERGE)
    assert api("GET", f"{PODS}/{name}")["status"]["nominatedNodeName"] == "n"


def binding(name: str, node: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}}


def test_a_binding_merges_its_metadata_in_the_same_write(api: client.Api, name: str) -> None:
    """The heart of bind: node and record reach the pod together or not at all."""
    uid = api("POST", PODS, pod(name, annotations={"keep": "1", "mine": "old"}))["metadata"]["uid"]
    carried = {"uid": uid, "annotations": {"mine": "new"}, "labels": {"node": "n1"}}

    api("POST", f"{PODS}/{name}/binding?timeout=2s", binding(name, "n1", **carried))

    bound = api("GET", f"{PODS}/{name}")
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"keep": "1", "mine": "new"}
    if build.MINOR >= 35:  # Before, the feature PodTopologyLabelsAdmission is off.
        assert bound["metadata"]["labels"] == {"node": "n1"}
    assert [(c["type"], c["status"]) for c in bound["status"]["conditions"]] == [("PodScheduled", "True")]


def test_a_binding_is_refused_where_its_premises_do_not_hold(api: client.Api, name: str) -> None:
    """Another pod of that name, a pod that is bound, a pod that is gone."""
    uid = api("POST", PODS, pod(name))["metadata"]["uid"]
    path = f"{PODS}/{name}/binding"

    status, message = refusal(api, "POST", path, binding(name, "n1", uid=str(uuid.uuid4())))
    assert status == 409
    assert "UID in precondition" in message
    api("POST", path, binding(name, "n1", uid=uid))
    status, message = refusal(api, "POST", path, binding(name, "n2", uid=uid, annotations={"x": "y"}))
    assert status == 409
    assert f'pod {name} is already assigned to node "n1"' in message
    assert "x" not in api("GET", f"{PODS}/{name}")["metadata"].get("annotations", {})
    assert refusal(api, "POST", f"{PODS}/no-{name}/binding", binding(f"no-{name}", "n1"))[0] == 404


def test_of_many_bindings_at_once_one_wins(api: client.Api, name: str) -> None:
    """Two extenders can not both bind a pod."""
    uid = api("POST", PODS, pod(name))["metadata"]["uid"]
    outcomes: list[str] = []

    def bind(node: str) -> None:
        try:
            api("POST", f"{PODS}/{name}/binding", binding(name, node, uid=uid))
            outcomes.append(node)
        except client.Refused as refused:
            assert refused.status == 409

    threads = [threading.Thread(target=bind, args=(f"n{index}",)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [api("GET", f"{PODS}/{name}")["spec"]["nodeName"]] == outcomes


def test_an_unbound_pod_goes_at_once_and_a_bound_one_gracefully(api: client.Api, name: str) -> None:
    """What a bound pod holds is held until its kubelet says otherwise."""
    api("POST", PODS, pod(name))
    api("POST", PODS, pod(f"{name}-b"))
    api("POST", f"{PODS}/{name}-b/binding", binding(f"{name}-b", "n1"))

    api("DELETE", f"{PODS}/{name}")
    api("DELETE", f"{PODS}/{name}-b")

    assert refusal(api, "GET", f"{PODS}/{name}")[0] == 404
    going = api("GET", f"{PODS}/{name}-b")["metadata"]
    assert going["deletionTimestamp"]
    assert going["deletionGracePeriodSeconds"] == 30
    assert refusal(api, "POST", f"{PODS}/{name}-b/binding", binding(f"{name}-b", "n1"))[0] == 409
    wrong = {"gracePeriodSeconds": 0, "preconditions": {"uid": str(uuid.uuid4())}}
    assert refusal(api, "DELETE", f"{PODS}/{name}-b", wrong)[0] == 409
    api("DELETE", f"{PODS}/{name}-b", {"gracePeriodSeconds": 0})
    assert refusal(api, "GET", f"{PODS}/{name}-b")[0] == 404


def test_lists_are_paged_and_selected(api: client.Api, name: str) -> None:
    """50,000 pods come in pages of a size that we choose."""
    for index in range(5):
        api("POST", PODS, pod(f"{name}-{index}", labels={"set": name, "odd": str(index % 2)}))
    chosen = parse.quote(f"set={name}")

    first = api("GET", f"{PODS}?labelSelector={chosen}&limit=2")
    assert len(first["items"]) == 2
    assert first["metadata"]["continue"]
    assert len(api.pages(f"{PODS}?labelSelector={chosen}")) == 5
    odd = parse.quote(f"set={name},odd in (1,2),!absent")
    assert len(api("GET", f"{PODS}?labelSelector={odd}")["items"]) == 2
    one = parse.quote(f"metadata.name={name}-3,spec.nodeName=")
    assert [item["metadata"]["name"] for item in api("GET", f"{PODS}?fieldSelector={one}")["items"]] == [f"{name}-3"]
    assert api("GET", f"{PODS}?fieldSelector={parse.quote('spec.nodeName!=')}&labelSelector={chosen}")["items"] == []


def test_a_watch_tells_what_happened_since_a_version_in_order(api: client.Api, name: str) -> None:
    """Added, modified, deleted; the last state comes with the deletion."""
    since = api("GET", f"{PODS}?limit=1")["metadata"]["resourceVersion"]
    api("POST", PODS, pod(name))
    api("PATCH", f"{PODS}/{name}", {"metadata": {"labels": {"a": "1"}}}, MERGE)
    api("DELETE", f"{PODS}/{name}")

    chosen = parse.quote(f"metadata.name={name}")
    events = list(watch(api, f"{PODS}?resourceVersion={since}&fieldSelector={chosen}", 2))

    kinds = [event["type"] for event in events if event["type"] != "BOOKMARK"]
    # A real server also shows the pod with its deletion timestamp before it is gone.
    assert (kinds[:2], kinds[-1]) == (["ADDED", "MODIFIED"], "DELETED")
    assert events[1]["object"]["metadata"]["labels"] == {"a": "1"}
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions)


def test_a_pod_that_leaves_a_selection_is_deleted_to_its_watcher(api: client.Api, name: str) -> None:
    """A watcher of unbound pods learns that one was bound."""
    api("POST", PODS, pod(name))
    since = api("GET", f"{PODS}?limit=1")["metadata"]["resourceVersion"]
    api("POST", f"{PODS}/{name}/binding", binding(name, "n1"))

    chosen = parse.quote(f"metadata.name={name},spec.nodeName=")
    events = list(watch(api, f"{PODS}?resourceVersion={since}&fieldSelector={chosen}", 1))

    assert [event["type"] for event in events if event["type"] != "BOOKMARK"] == ["DELETED"]


def test_events_of_either_api_are_the_same_events(api: client.Api, name: str) -> None:
    """We write `events.k8s.io`, and kubectl reads the older one."""
    body = {
        "metadata": {"name": name, "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "hami-scheduler", "reportingInstance": "host-1", "action": "GPUScheduling",
        "reason": "FailedScheduling", "type": "Warning", "note": "first\n    second",
        "regarding": {"kind": "Pod", "namespace": "default", "name": name, "apiVersion": "v1", "uid": "u"},
    }  # fmt: skip
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    api("POST", path, body)

    series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:10.000000Z"}}
    assert api("PATCH", f"{path}/{name}", series, MERGE)["series"]["count"] == 2
    old = api("GET", f"/api/v1/namespaces/default/events/{name}")
    assert (old["message"], old["involvedObject"]["name"]) == ("first\n    second", name)
    chosen = parse.quote(f"involvedObject.name={name}")
    assert len(api("GET", f"/api/v1/namespaces/default/events?fieldSelector={chosen}")["items"]) == 1


def test_a_lease_is_kept_by_optimistic_locking(api: client.Api, name: str) -> None:
    """Leadership rests on it."""
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    made = api("POST", path, {"metadata": {"name": name}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}})
    renewed = {**made, "spec": {**made["spec"], "holderIdentity": "b"}}

    assert api("PUT", f"{path}/{name}", renewed)["spec"]["holderIdentity"] == "b"
    assert refusal(api, "PUT", f"{path}/{name}", {**renewed, "spec": made["spec"]})[0] == 409


def test_an_account_may_ask_what_it_may_do(api: client.Api) -> None:
    """`hamictl doctor` says what its user lacks, before it is refused halfway."""
    asked = {"resourceAttributes": {"verb": "list", "group": "apps", "resource": "daemonsets"}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": asked}

    assert api("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)["status"]["allowed"] is True
    assert api("GET", "/apis/apps/v1/daemonsets")["kind"] == "DaemonSetList"
    assert api("GET", "/apis/coordination.k8s.io/v1/leases")["kind"] == "LeaseList"


def test_what_is_no_json_or_no_path_is_refused(api: client.Api, name: str) -> None:
    """Each with a status that says so."""
    assert refusal(api, "POST", PODS, [1])[0] == 400
    assert refusal(api, "GET", "/apis/nothing.example/v1/things")[0] == 404
    assert refusal(api, "POST", PODS, {"metadata": {"name": name}})[0] in (400, 422)
    assert refusal(api, "PATCH", f"{PODS}/{name}", {}, MERGE)[0] == 404
