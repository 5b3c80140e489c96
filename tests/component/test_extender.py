"""The extender as a process: lost answers, broken watches, restarts, stopping, and what it shows."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import signal
import ssl
import subprocess
import sys
import threading
import time

import pytest

from gpu_sharing.adapters import objects
from lab import api_server, certificates, cluster, extender_process, faults, gpus, kinds
from tests import tools
from tests.component import calls
from tests.component.conftest import SMALL
from tests.support import impatient

pytestmark = pytest.mark.slow

Extender = extender_process.ExtenderProcess


def test_a_binding_whose_answer_was_lost_is_found_out(extender: Extender, server: api_server.Running) -> None:
    """It was done, so it is a success, and the place is counted once."""
    pod = calls.create(server, "p")
    server.app.faults.arm(faults.Fault("POST", "/binding$", loses_answer=True))

    assert calls.bind(extender, pod, "a") == ""
    assert calls.read(extender, "cluster")["memory_mib"]["allocated"] == 4000


def test_a_binding_that_was_refused_by_a_broken_server_gives_the_place_back(
    extender: Extender, server: api_server.Running
) -> None:
    """It was not done; kube-scheduler tries again, and then it is."""
    pod = calls.create(server, "p")
    server.app.faults.arm(faults.Fault("POST", "/binding$", refuse_with=500))

    assert calls.bind(extender, pod, "a").startswith("SCHED_BIND_FAILED")
    assert calls.read(extender, "cluster")["memory_mib"]["allocated"] == 0
    assert calls.bind(extender, pod, "a") == ""


def test_a_watch_that_breaks_or_expires_misses_nothing(extender: Extender, server: api_server.Running) -> None:
    """Pods that came and went in between are known; held places are kept."""
    kept = calls.create(server, "kept")
    assert calls.bind(extender, kept, "a") == ""
    for number, cut in enumerate((server.app.store.end_watches, server.app.store.compact)):
        server.call(cut)
        server.request("DELETE", f"{calls.PODS}/kept?gracePeriodSeconds=0") if number else None
        calls.create(server, f"new-{number}")
        calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 2)

    calls.eventually(lambda: calls.read(extender, "cluster")["memory_mib"]["allocated"] == 0)
    watches = ("nodes", "pods", "quotas")
    calls.eventually(
        lambda: sum(extender.metric(f'hami_watch_failures_total{{watch="{one}"}}') for one in watches) >= 1
    )


def test_two_binds_for_one_place_are_one_success(extender: Extender, server: api_server.Running) -> None:
    """Twelve pods of half a GPU on a node with room for four."""
    pods = [calls.create(server, f"p{index}", {**calls.LIMITS, "nvidia.com/gpumem": "8000"}) for index in range(12)]

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(lambda pod: calls.bind(extender, pod, "a"), pods))

    assert outcomes.count("") == 4
    assert all(error.startswith("SCHED_NO_LONGER_FITS") for error in outcomes if error)
    (node,) = [one for one in calls.read(extender, "nodes")["nodes"] if one["name"] == "a"]
    assert [gpu["memory_mib"] for gpu in node["gpus"]] == [{"total": 16_000, "allocated": 16_000}] * 2


def test_a_restart_knows_everything_from_the_api_objects(extender: Extender, server: api_server.Running) -> None:
    """SIGKILL, and the same answers from the next process."""
    for index in range(3):
        assert calls.bind(extender, calls.create(server, f"p{index}"), "a") == ""
    before = calls.read(extender, "nodes")

    extender.kill()
    extender.start()
    extender.wait_ready()

    assert calls.read(extender, "nodes") == before


def test_sigterm_lets_a_bind_finish(extender: Extender, server: api_server.Running) -> None:
    """A rolling update does not fail pods."""
    pod = calls.create(server, "p")
    server.app.faults.arm(faults.Fault("POST", "/binding$", delay_seconds=1.0))
    outcome: list[str] = []
    binding = threading.Thread(target=lambda: outcome.append(calls.bind(extender, pod, "a")))
    binding.start()
    calls.eventually(lambda: not server.app.faults.armed)

    extender.stop()
    binding.join()

    assert outcome == [""]
    assert server.request("GET", f"{calls.PODS}/p")["spec"]["nodeName"] == "a"


def test_before_the_cluster_is_read_nothing_is_answered(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """Alive, not ready, and every verb says so in a way that kube-scheduler understands."""
    server.app.faults.arm(faults.Fault("GET", "/api/v1/pods$", times=1000, refuse_with=503))
    extender = Extender(server.write_kubeconfig(tmp_path / "kubeconfig"), tmp_path / "log")
    extender.start()
    try:
        body = json.dumps({"Pod": calls.create(server, "p"), "NodeNames": ["a"]}).encode()

        assert extender.get("health", "/livez")[0] == 200
        assert extender.get("health", "/readyz")[0] == 503
        assert calls.raw(extender, "filter", body)[1]["error_code"] == "SCHED_NOT_READY"
        assert calls.raw(extender, "prioritize", body)[0] == 500
        assert extender.get("api", "/api/v1/nodes")[0] == 503
        health = json.loads(extender.get("health", "/healthz")[1])
        assert health["components"]["pods"]["healthy"] is False
    finally:
        extender.stop()


def test_a_start_that_lists_for_long_shows_how_far_it_is(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """An operator sees which list a start waits for; it was one line in a log, and only of lists that went on."""
    server.app.faults.arm(faults.Fault("GET", "/api/v1/pods$", times=1000, refuse_with=503))
    extender = Extender(server.write_kubeconfig(tmp_path / "kubeconfig"), tmp_path / "log")
    extender.start()
    try:

        def ratio(work: str) -> float:
            return extender.metric(f'hami_progress_ratio{{work="{work}"}}')

        calls.eventually(lambda: ratio("list_nodes") == 1)
        assert ratio("list_pods") == ratio("count_nodes") == 0
        server.call(server.app.faults.disarm)
        calls.eventually(lambda: ratio("list_pods") == ratio("count_nodes") == 1)
        calls.eventually(lambda: extender.get("health", "/readyz")[0] == 200)
    finally:
        extender.stop()


def test_only_the_extender_beside_the_leader_binds(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """The other one is ready all the same, or a rolling update would wait for ever."""
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    spec = {"holderIdentity": "other_1", "leaseDurationSeconds": 15}
    lease = server.request("POST", leases, {"metadata": {"name": "hami"}, "spec": spec})
    flags = ("--leader-lease", "kube-system/hami", "--identity", "us")
    with extender_process.running(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", *flags) as extender:
        pod = calls.create(server, "p")
        assert calls.bind(extender, pod, "a").startswith("SCHED_NOT_LEADER")
        assert extender.get("health", "/readyz")[0] == 200

        def renew() -> bool:
            nonlocal lease
            changed = {
                **lease["spec"],
                "holderIdentity": "us_2",
                "renewTime": f"2026-01-01T00:00:00.{time.time_ns() % 10**6:06}Z",
            }
            lease = server.request("PUT", f"{leases}/hami", {**lease, "spec": changed})
            time.sleep(0.5)
            return bool(json.loads(extender.get("health", "/healthz")[1])["leading"])

        calls.eventually(renew)
        assert calls.bind(extender, pod, "a") == ""


def test_the_read_api_explains_a_waiting_pod(extender: Extender, server: api_server.Running) -> None:
    """Node by node, with codes and whether evicting somebody would help."""
    calls.create(server, "big", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "99000"})
    calls.create(server, "bad", {"nvidia.com/gpu": "1", "nvidia.com/gpucores": "500"})
    calls.eventually(lambda: calls.read(extender, "cluster")["pods_pending"] == 2)

    found = calls.read(extender, "explain/default/big")
    bad = calls.read(extender, "explain/default/bad")

    assert found["summary"].startswith("0/2 nodes available: 2 GPU memory insufficient")
    assert found["nodes"][0] == {
        "node": "a",
        "fits": False,
        "code": "SCHED_INSUFFICIENT_GPU_MEMORY",
        "message": "GPU memory insufficient (requested 99,000 MiB, available 16,000 MiB)",
        "curable": False,
        "advice": "request at most 16000 MiB of each GPU's memory",
        "waits_for": [],
        "evictable": [],
        "examined": True,
    }
    assert (found["nearest"], found["gates"]) == (None, [])
    assert found["remedy"] == "Request at most 16000 MiB of each GPU's memory."
    assert found["groups"] == [
        {"code": "SCHED_INSUFFICIENT_GPU_MEMORY", "message": "GPU memory insufficient", "nodes": 2, "nearest": "a"}
    ]
    assert [cause["code"] for cause in found["causes"]] == ["SCHED_NEVER_FITS"]
    for query, count in (("nodes=1", 1), ("nodes=0", 0), ("nodes=-1", 2), ("nodes=9999999999", 2), ("x=1&nodes=1", 1)):
        answer = calls.read(extender, f"explain/default/big?{query}")
        assert (len(answer["nodes"]), answer["groups"]) == (count, found["groups"]), query
    assert (bad["nodes"], [cause["code"] for cause in bad["causes"]]) == ([], ["SCHED_PERCENT_OUT_OF_RANGE"])
    reasons = {pod["name"]: pod["reason"] for pod in calls.read(extender, "pods")["pods"]}
    assert reasons["bad"] == bad["causes"][0]["message"]


def test_the_read_api_says_which_pod_was_probably_meant(extender: Extender, server: api_server.Running) -> None:
    """A typo and a wrong namespace are the commonest reasons why a name is not known."""
    calls.create(server, "train-7")
    calls.eventually(lambda: calls.read(extender, "cluster")["pods_pending"] == 1)

    def refusal(path: str) -> str:
        status, body = extender.get("api", f"/api/v1/{path}")
        answer = json.loads(body)
        assert (status, answer["error_code"]) == (404, "SCHED_NO_SUCH_POD")
        return str(answer["message"])

    assert refusal("explain/default/trian-7") == "no pod default/trian-7 requests GPUs; did you mean default/train-7?"
    assert refusal("events/ai/train-7") == "no pod ai/train-7 requests GPUs; a pod of that name is in namespace default"
    assert refusal("explain/default/other") == "no pod default/other requests GPUs"


def test_the_read_api_tells_what_happened_to_a_pod(extender: Extender, server: api_server.Running) -> None:
    """By its events, whoever wrote them, oldest first; and says so where the API server does not tell them."""
    pod = calls.create(server, "p")
    assert calls.bind(extender, pod, "a") == ""
    server.request(
        "POST",
        "/api/v1/namespaces/default/events",
        {
            "metadata": {"name": "p.1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p", "uid": pod["metadata"]["uid"]},
            "reason": "Pulled", "message": "Image is here", "type": "Normal", "count": 3,
            "firstTimestamp": "2001-01-01T00:00:00Z", "lastTimestamp": "2001-01-01T00:01:00Z",
            "source": {"component": "kubelet"},
        },
    )  # fmt: skip

    def told() -> bool:
        return len(calls.read(extender, "events/default/p")["events"]) == 2

    calls.eventually(told)
    pulled, scheduled = calls.read(extender, "events/default/p")["events"]
    assert pulled == {
        "first_at": 978307200.0, "last_at": 978307260.0, "count": 3, "reporter": "kubelet", "type": "Normal",
        "reason": "Pulled", "note": "Image is here",
    }  # fmt: skip
    assert (scheduled["reason"], scheduled["reporter"], scheduled["count"]) == ("Scheduled", "hami-scheduler", 1)
    assert scheduled["first_at"] > 1_700_000_000
    assert extender.get("api", "/api/v1/events/default/absent")[0] == 404
    server.app.faults.arm(faults.Fault("GET", "/events", refuse_with=403))
    status, body = extender.get("api", "/api/v1/events/default/p")
    assert (status, json.loads(body)["error_code"]) == (502, "SCHED_EVENTS_UNREAD")


def test_the_read_api_is_open_on_loopback_and_secured_beside_it(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """For kubectl port-forward the one, for the WebUI the other."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificates.write(certificate, key)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--secure-api-bind", "127.0.0.1:0")
    with extender_process.running(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", *flags) as extender:
        assert extender.get("api", "/api/v1/cluster")[0] == 200
        secured = (extender.logged("listening") or {})["secure-api"]
        trust = ssl.create_default_context(cafile=str(certificate))
        for token, status in (("", 401), (server.app.token, 200), ("wrong", 401)):
            connection = http.client.HTTPSConnection("localhost", int(secured.rpartition(":")[2]), context=trust)
            connection.request("GET", "/api/v1/cluster", headers={"Authorization": f"Bearer {token}"})
            assert connection.getresponse().status == status
            connection.close()


def test_off_loopback_the_read_api_asks_for_a_token(server: api_server.Running, tmp_path: pathlib.Path) -> None:
    """Who holds what is nobody else's business."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificates.write(certificate, key)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key))
    extender = Extender(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", *flags)
    extender.addresses["api"] = "0.0.0.0:0"
    extender.start()
    try:
        extender.wait_ready()
        program = (
            "import ssl, sys, urllib.request, urllib.error\n"
            "request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})\n"
            "try: print(urllib.request.urlopen(request, context=ssl._create_unverified_context()).status)\n"
            "except urllib.error.HTTPError as refused: print(refused.code)\n"
        )
        url = f"https://127.0.0.1:{extender.api.rpartition(':')[2]}/api/v1/nodes"
        found = [
            subprocess.run([sys.executable, "-c", program, url, token], capture_output=True, text=True).stdout.strip()
            for token in (server.token, "wrong", "")
        ]
    finally:
        extender.stop()
    assert found == ["200", "401", "401"]
    assert server.token not in (tmp_path / "log").read_text()


def test_a_pod_is_placed_by_the_whole_chain_and_freed_room_is_used(tmp_path: pathlib.Path) -> None:
    """Scheduler loop, extender, API server, kubelet: a pending pod gets the place of one that goes."""
    with cluster.running([gpus.gpu_node("a", SMALL, 1)], folder=tmp_path) as running:
        large = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "12000"}
        calls.create(running.server, "first", large)
        calls.eventually(lambda: _phase(running, "first") == "Running")
        calls.create(running.server, "second", large)
        calls.eventually(lambda: any(e["reason"] == "FailedScheduling" for e in running.all(kinds.EVENTS)))

        running.server.request("DELETE", f"{calls.PODS}/first")

        calls.eventually(lambda: _phase(running, "second") == "Running")


def _phase(running: cluster.Cluster, name: str) -> str:
    return str(running.server.request("GET", f"{calls.PODS}/{name}")["status"]["phase"])


def test_logs_are_json_with_codes_and_a_decision_id(extender: Extender, server: api_server.Running) -> None:
    """What was decided about a pod is found by one id, and a refusal by its code."""
    pod = calls.create(server, "p")
    calls.filtered(extender, pod, "a", "b")
    assert calls.bind(extender, pod, "a") == ""
    calls.filtered(extender, calls.create(server, "q", {"nvidia.com/gpu": "9"}), "a", "b")

    bound = calls.eventually(lambda: extender.logged("bound"))
    refused = calls.eventually(lambda: extender.logged("Failed to schedule pod"))

    annotations = server.request("GET", f"{calls.PODS}/p")["metadata"]["annotations"]
    assert bound["decision_id"] == annotations["hami.io/decision-id"]
    assert (refused["error_code"], refused["pod"]) == ("SCHED_TOO_FEW_GPUS", "default/q")
    assert refused["level"] == "error"


def test_the_canary_finds_the_verbs_answering(extender: Extender) -> None:
    """The process calls itself as kube-scheduler would; that is no call of kube-scheduler's."""
    calls.eventually(lambda: json.loads(extender.get("health", "/healthz")[1])["components"]["verbs"]["healthy"])
    assert extender.get("health", "/startupz")[0] == 200
    counted = [
        line
        for line in extender.get("health", "/metrics")[1].decode().splitlines()
        if line.startswith("hami_scheduler_calls_total{") and not line.endswith(" 0.0")
    ]
    assert counted == []


def test_promtool_finds_nothing_wrong_with_the_names(extender: Extender, server: api_server.Running) -> None:
    """Of an extender that has bound and refused something, while a hundred scrape at once."""
    promtool = tools.find("promtool")
    assert calls.bind(extender, calls.create(server, "p"), "a") == ""
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: extender.get("health", "/metrics"), range(100)))

    assert {status for status, _ in answers} == {200}
    done = subprocess.run([promtool, "check", "metrics"], input=answers[0][1], capture_output=True, timeout=60)
    assert done.stderr.decode() == ""


def cancelled(extender: Extender, verb: str) -> float:
    return extender.metric(f'hami_scheduler_calls_total{{outcome="cancelled",verb="{verb}"}}')


def test_a_call_that_kube_scheduler_gave_up_is_counted_as_such(extender: Extender, server: api_server.Running) -> None:
    """Such calls were counted as answered, so that a cluster in which no call was in time looked healthy."""
    pod = calls.create(server, "p")
    arguments = {"PodName": "p", "PodNamespace": "default", "PodUID": pod["metadata"]["uid"], "Node": "a"}
    server.app.faults.arm(faults.Fault("POST", "/binding$", delay_seconds=1.0))
    impatient.hang_up(extender.verbs, "bind", json.dumps(arguments).encode())
    calls.eventually(lambda: cancelled(extender, "bind") == 1)
    calls.eventually(lambda: server.request("GET", f"{calls.PODS}/p")["spec"].get("nodeName") == "a")

    # A process that had no CPU for a while finds the call and the end of the connection at the same time.
    os.kill(extender.pid, signal.SIGSTOP)
    try:
        body = {"Pod": calls.create(server, "q"), "Nodes": None, "NodeNames": ["a"]}
        impatient.hang_up(extender.verbs, "filter", json.dumps(body).encode())
    finally:
        os.kill(extender.pid, signal.SIGCONT)
    calls.eventually(lambda: cancelled(extender, "filter") == 1)
    assert calls.filtered(extender, calls.create(server, "r"), "a")["NodeNames"] == ["a"]
    assert cancelled(extender, "filter") == 1


def test_how_long_a_pod_was_pending_survives_a_restart_of_the_extender(
    extender: Extender, server: api_server.Running
) -> None:
    """The start is the pod's creation by the API server, not what a process remembers."""
    pod = calls.create(server, "p")
    extender.kill()
    extender.start()
    extender.wait_ready()
    calls.eventually(lambda: time.time() - objects.unix_seconds(pod["metadata"]["creationTimestamp"]) > 2)

    assert calls.bind(extender, pod, "a") == ""

    name = "hami_scheduler_pod_pending_duration_seconds"
    assert extender.metric(f'{name}_count{{error_code="NONE"}}') == 1
    assert extender.metric(f'{name}_sum{{error_code="NONE"}}') > 2
