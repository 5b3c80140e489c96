"""Whatever arrives gets a coded answer, is counted, and changes nothing."""

import json
import socket
from typing import Any

import pytest

from lab import api_server, extender_process, kinds
from tests.component import calls

pytestmark = pytest.mark.slow

Extender = extender_process.ExtenderProcess


def state(extender: Extender) -> Any:
    return calls.read(extender, "nodes"), calls.read(extender, "pods")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"{}", b'{"Pod":null}', b'{"Pod":{"metadata":{"name":"p"}}}',
        b'{"Pod":{"metadata":{"name":"p","uid":"u"}},"NodeNames":"a"}', b'{"Pod":7,"NodeNames":[]}', b"\xff\xfe",
        b'{"Pod":{"metadata":{"name":"p","uid":"u"}},"NodeNames":[1]}', b'{"Pod":{"spec":{"containers":{}}}}',
        b'{"Pod":{"metadata":{"name":"p","uid":"u"}},"Nodes":{"items":[7]}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_call_is_refused_with_a_code(extender: Extender, body: bytes) -> None:
    """kube-scheduler reads `Error` of filter and bind with status 200 only; the others have no such field: 400."""
    before = state(extender)

    for verb, status in (("filter", 200), ("bind", 200), ("prioritize", 400), ("preempt", 400)):
        if (verb, body) in _FINE:
            continue
        found, answer = calls.raw(extender, verb, body)
        assert found == status, (verb, answer)
        assert answer["Error"].startswith("SCHED_BAD_REQUEST: "), verb

    assert state(extender) == before
    metrics = extender.get("health", "/metrics")[1].decode()
    assert 'hami_scheduler_bad_requests_total{error_code="SCHED_BAD_REQUEST"}' in metrics


# A pod that requests no GPU needs no identity; preempt does not check names.
_FINE = {
    *((verb, b'{"Pod":{"metadata":{"name":"p"}}}') for verb in ("filter", "prioritize", "preempt")),
    ("preempt", b'{"Pod":{"metadata":{"name":"p","uid":"u"}},"NodeNames":"a"}'),
    ("preempt", b'{"Pod":{"metadata":{"name":"p","uid":"u"}},"NodeNames":[1]}'),
    ("preempt", b'{"Pod":{"metadata":{"name":"p","uid":"u"}},"Nodes":{"items":[7]}}'),
}


def test_what_go_reads_leniently_is_read_leniently(extender: Extender, server: api_server.Running) -> None:
    """A stock kube-scheduler or another tool may write null for none, and leave out what it does not know."""
    plain = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}
    assert calls.call(extender, "filter", {"Pod": plain, "NodeNames": ["a", "x"]})["NodeNames"] == ["a", "x"]
    scores = calls.call(extender, "prioritize", {"Pod": plain, "NodeNames": ["a"]})
    assert scores == [{"Host": "a", "Score": 0}]

    chosen = {"a": None, "b": {"Pods": None}, "c": {"Pods": [None, {"UID": "u"}], "NumPDBViolations": 1}}
    by_uid = calls.call(extender, "preempt", {"Pod": plain, "NodeNameToMetaVictims": chosen})
    assert by_uid["NodeNameToMetaVictims"] == {
        "a": {"Pods": [], "NumPDBViolations": 0}, "b": {"Pods": [], "NumPDBViolations": 0},
        "c": {"Pods": [{"UID": "u"}], "NumPDBViolations": 1},
    }  # fmt: skip
    whole = {"a": None, "b": {"Pods": [None, {"metadata": {"uid": "u"}}]}}
    by_pod = calls.call(extender, "preempt", {"Pod": plain, "NodeNameToVictims": whole})["NodeNameToMetaVictims"]
    assert (by_pod["a"]["Pods"], by_pod["b"]["Pods"]) == ([], [{"UID": "u"}])

    asking = calls.create(server, "asks")
    del asking["metadata"]["uid"]
    for verb, status in (("filter", 200), ("prioritize", 400), ("preempt", 400)):
        found, answer = calls.raw(extender, verb, json.dumps({"Pod": asking, "NodeNames": ["a"]}).encode())
        assert (found, answer["message"]) == (status, "the Pod has no uid or no name")


def test_unknown_paths_and_methods_are_refused(extender: Extender) -> None:
    """A wrong urlPrefix is found by its message."""
    assert calls.raw(extender, "frobnicate", b"{}")[1]["error_code"] == "SCHED_UNKNOWN_ROUTE"
    assert calls.raw(extender, "frobnicate", b"{}")[0] == 404
    assert calls.raw(extender, "filter", b"", "GET")[0] == 405
    assert extender.get("api", "/api/v1/nothing")[0] == 404
    assert extender.get("health", "/nothing")[0] == 404


def test_a_body_of_a_hundred_megabytes_is_not_kept(extender: Extender) -> None:
    """Nobody fills the extender's memory."""
    status, answer = calls.raw(extender, "filter", b" " * 100_000_000)

    assert (status, answer["error_code"]) == (200, "SCHED_BODY_TOO_LARGE")


def test_a_caller_that_stops_in_the_middle_is_let_go(extender: Extender, server: api_server.Running) -> None:
    """A half-open connection costs other tenants nothing."""
    host, _, port = extender.verbs.partition(":")
    for said in (b"POST /filter HTTP/1.1\r\n", b"POST /filter HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        with socket.create_connection((host, int(port))) as half:
            half.sendall(said)
            pod = calls.create(server, f"p{len(said)}")
            assert calls.filtered(extender, pod, "a")["NodeNames"] == ["a"]
    calls.eventually(lambda: extender.metric("hami_scheduler_in_flight_calls") == 0)


def test_unknown_nodes_and_null_names(extender: Extender, server: api_server.Running) -> None:
    """A node that the mirror does not know is refused by name; no names are no nodes."""
    pod = calls.create(server, "p")

    assert calls.filtered(extender, pod, "a", "ghost") == {
        "NodeNames": ["a"],
        "FailedAndUnresolvableNodes": {"ghost": "node unknown to the GPU scheduler"},
        "Error": "",
    }
    assert calls.call(extender, "filter", {"Pod": pod, "Nodes": None, "NodeNames": None})["NodeNames"] == []


def test_a_bind_is_refused_where_its_premises_are_gone(extender: Extender, server: api_server.Running) -> None:
    """Deleted, replaced, bound elsewhere, a node that vanished: each with its code, and nothing is held."""
    deleted = calls.create(server, "deleted")
    server.request("DELETE", f"{calls.PODS}/deleted")
    assert calls.bind(extender, deleted, "a").startswith("SCHED_POD_GONE")

    old = calls.create(server, "replaced")
    server.request("DELETE", f"{calls.PODS}/replaced")
    calls.create(server, "replaced")
    assert calls.bind(extender, old, "a").startswith("SCHED_POD_GONE")

    taken = calls.create(server, "taken")
    server.request("POST", f"{calls.PODS}/taken/binding", {"metadata": {"name": "taken"}, "target": {"name": "b"}})
    assert calls.bind(extender, taken, "a").startswith("SCHED_ALREADY_BOUND")

    homeless = calls.create(server, "homeless")
    server.call(lambda: server.app.store.remove(kinds.NODES, ("", "b"), server.app.store.get(kinds.NODES, "", "b")))
    calls.eventually(lambda: len(calls.read(extender, "nodes")["nodes"]) == 1)
    assert calls.bind(extender, homeless, "b").startswith("SCHED_NO_LONGER_FITS")

    assert calls.bind(extender, calls.create(server, "cpu", {"cpu": "1"}), "a").startswith("SCHED_BAD_REQUEST")
    assert calls.read(extender, "nodes")["nodes"][0]["gpus"][0]["memory_mib"]["allocated"] == 0
    assert extender.metric("hami_scheduler_bind_failure_total") == 5


def test_a_bind_repeated_is_done_once(extender: Extender, server: api_server.Running) -> None:
    """kube-scheduler may ask again after a timeout; to another node it is refused."""
    pod = calls.create(server, "p")

    assert [calls.bind(extender, pod, "a") for _ in range(3)] == ["", "", ""]
    assert calls.bind(extender, pod, "b").startswith("SCHED_ALREADY_BOUND")
    annotations = server.request("GET", f"{calls.PODS}/p")["metadata"]["annotations"]
    assert annotations["hami.io/vgpu-node"] == "a"
    promised = [
        gpu["memory_mib"]["allocated"] for node in calls.read(extender, "nodes")["nodes"] for gpu in node["gpus"]
    ]
    assert sorted(promised) == [0, 0, 0, 4000]


@pytest.mark.parametrize(
    "annotations",
    [
        {"hami.io/vgpu-devices-allocated": "garbage"}, {"hami.io/vgpu-devices-allocated": "GPU-x,NVIDIA,1,1:;" * 9},
        {"hami.io/vgpu-devices-allocated": "GPU-x,NVIDIA,999999999999999999999,1:;"},
    ],
)  # fmt: skip
def test_a_forged_record_closes_its_node_and_no_other(
    extender: Extender, server: api_server.Running, annotations: dict[str, str]
) -> None:
    """What cannot be read may hold anything, but only where the pod is."""
    body = {"metadata": {"name": "forged", "annotations": annotations}, "spec": {"nodeName": "a", "containers": [
        {"name": "c", "resources": {"limits": calls.LIMITS}}]}}  # fmt: skip
    server.request("POST", calls.PODS, body)
    calls.eventually(lambda: any(one["corrupt"] for one in calls.read(extender, "pods")["pods"]))

    answer = calls.filtered(extender, calls.create(server, "p"), "a", "b")

    assert answer["NodeNames"] == ["b"]
    assert answer["FailedAndUnresolvableNodes"] == {"a": "GPU usage unknown"}
    assert extender.metric("hami_scheduler_corrupt_records_total") == 1
    told = [event for event in server.call(lambda: list(server.app.store.all(kinds.EVENTS))) if event]
    calls.eventually(lambda: told or server.call(lambda: list(server.app.store.all(kinds.EVENTS))))


def test_a_forged_inventory_closes_its_node(extender: Extender, server: api_server.Running) -> None:
    """A driver that lies, or an annotation written by hand, is no capacity."""
    patch = {"metadata": {"annotations": {"hami.io/node-nvidia-register": '[{"id":"x","devmem":-5}]'}}}
    server.request("PATCH", "/api/v1/nodes/a", patch, "application/merge-patch+json")
    calls.eventually(lambda: calls.read(extender, "nodes")["nodes"][0]["standing"] == "corrupt_node_record")

    answer = calls.filtered(extender, calls.create(server, "p"), "a", "b")

    assert answer["FailedAndUnresolvableNodes"] == {"a": "GPU record of the node unreadable"}


def test_the_same_garbage_on_a_pod_without_gpu_blocks_nothing(extender: Extender, server: api_server.Running) -> None:
    """Records are read only from pods that request a managed resource."""
    body = {"metadata": {"name": "cpu", "annotations": {"hami.io/vgpu-devices-allocated": "garbage"}},
            "spec": {"nodeName": "a", "containers": [{"name": "c"}]}}  # fmt: skip
    server.request("POST", calls.PODS, body)
    pod = calls.create(server, "p")
    calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 1)

    assert calls.filtered(extender, pod, "a")["NodeNames"] == ["a"]
    assert json.loads(extender.get("health", "/healthz")[1])["status"] == "ok"
