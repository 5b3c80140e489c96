"""The pages by Flask's own client, on made-up answers of the extender: what is on them, and what nobody can break."""

import asyncio
import concurrent.futures
import contextlib
import http.server
import inspect
import ipaddress
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import flask.testing
import hypothesis
import msgspec
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import errors
from lab import api_server
from tests.component import liar
from tests.support import searching
from webui import access, app, cluster, extender_poller, history, lists, meters, metrics, models, settings, snapshots
from webui.settings import Settings

EVIL = "<script>alert(1)</script>"


class FakeExtender:
    """Says what it is told to say, or nothing."""

    def __init__(self, nodes: list[Any], pods: list[Any]) -> None:
        self.answers: dict[str, Any] = {"cluster": {}, "nodes": {"nodes": nodes}, "pods": {"pods": pods}}
        self.remediated = read_api_types.Remediation()
        self.explanations: dict[tuple[str, str], Any] = {}
        self.events: dict[tuple[str, str], Any] = {}
        self.is_away = False
        self.asked = 0

    def nodes(self) -> list[read_api_types.Node]:
        return self._items("nodes", read_api_types.Node)

    def pods(self) -> list[read_api_types.Pod]:
        return self._items("pods", read_api_types.Pod)

    def remediation(self) -> read_api_types.Remediation:
        return self.remediated

    def _items(self, what: str, kind: type[Any]) -> list[Any]:
        found = self._answer(what)[what]
        try:
            return [msgspec.convert(one, kind) for one in found]
        except msgspec.ValidationError as broken:
            raise extender_poller.NoAnswer(
                f"an answer of the extender about {what} cannot be read: {broken}"
            ) from broken

    def get(self, kind: type[Any], *parts: str, query: str = "") -> Any:
        answer = self._answer(*parts)
        if query:  # `?nodes=N`, as the extender reads it.
            answer = {**answer, "nodes": answer["nodes"][: int(query.partition("=")[2])]}
        return msgspec.convert(answer, kind)

    def _answer(self, *parts: str) -> Any:
        self.asked += 1
        if self.is_away:
            raise extender_poller.NoAnswer("the extender does not answer: Connection refused")
        if parts[0] == "explain":
            found = self.explanations.get((parts[1], parts[2]))
            if found is None:
                raise extender_poller.NoAnswer("the extender answers 404")
            return found
        if parts[0] == "events":
            return {"pod": "", "events": self.events.get((parts[1], parts[2]), [])}
        return self.answers[parts[0]]


def gpu(node: str, index: int, allocated: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{node}-{index}", "index": index, "type": "NVIDIA A100", "mode": "", "healthy": True,
        "unhealthy_reason": "", "cordoned": False, "allocation_unknown": False,
        "memory_mib": {"total": 16_000, "allocated": allocated},
        "cores_percent": {"total": 100, "allocated": 30}, "slots": {"total": 10, "allocated": int(allocated > 0)},
        "exclusive": False, **more,
    }  # fmt: skip


def pod(
    name: str, node: str | None = None, *shares: tuple[str, int], namespace: str = "ai", **more: Any
) -> dict[str, Any]:
    gpus = [{"uuid": uuid, "memory_mib": mib, "cores_percent": 30} for uuid, mib in shares]
    return {
        "namespace": namespace, "name": name, "uid": name, "node": node, "phase": "bound" if node else "pending",
        "starting": False, "corrupt": False, "foreign_slots": 0, "containers": [gpus], "gpus": gpus, "error_code": "",
        "created_at": 999_000, "bound_at": 999_500 if node else 0, "requests": [], **more,
    }  # fmt: skip


def event(reason: str, note: str, **more: Any) -> dict[str, Any]:
    return {
        "first_at": 999_600.0, "last_at": 999_900.0, "count": 1, "reporter": "hami-scheduler", "type": "Normal",
        "reason": reason, "note": note, **more,
    }  # fmt: skip


def node(name: str, *gpus: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": name, "standing": "none", "foreign_slots": 0, "labels": {"pool": name}, "gpus": [*gpus],
        "problems": {}, **more,
    }  # fmt: skip


class FakeMeter:
    """Says what is used, or nothing."""

    def __init__(self) -> None:
        self.used: snapshots.Used | None = None

    def read(self) -> snapshots.Used:
        if self.used is None:
            raise meters.NoAnswer("Prometheus does not answer: refused")
        return self.used

    def series(self, node: str, pod: str, seconds: float) -> history.Series:
        if self.used is None:
            raise meters.NoAnswer("Prometheus does not answer: refused")
        return history.series_of([1.0, 3601.0], [1000, 3000], [None, 500])


class Site:
    """The application, and what its extender says."""

    def __init__(
        self,
        nodes: list[Any],
        pods: list[Any],
        *,
        measured: bool = False,
        monitors: Any = None,
        gate: access.Gate | None = None,
        sessions: access.Sessions | None = None,
        **options: Any,
    ) -> None:
        self.now = 1_000_000.0
        self.extender = FakeExtender(nodes, pods)
        fake: Any = self.extender
        self.meter = FakeMeter()
        meter: Any = self.meter
        self.source = extender_poller.Source(fake, meter if measured else None, monitors, lambda: self.now)
        self.source.refresh()
        made = app.create(self.source, Settings(**options), gate or access.Open(), sessions, lambda: self.now)
        self.metrics = metrics.Metrics(lambda: self.now - self.source.view.taken_at, lambda: self.now)
        self.metrics.measure(made)
        self.client: flask.testing.FlaskClient = made.test_client()

    def page(self, path: str, status: int = 200, **headers: str) -> str:
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.text


@pytest.fixture
def site() -> Site:
    """Three nodes, one of them unhealthy; a pod that holds, one that waits."""
    nodes = [
        node("a", gpu("a", 0, 4000), gpu("a", 1)),
        node("b", gpu("b", 0, healthy=False, unhealthy_reason="XID 79: fell off the bus")),
        node("c", standing="node_not_registered"),
    ]
    requests = [{"gpus": 1, "memory_mib": 99_000, "memory_percent": 0, "cores_percent": 30}]
    pending = pod("waits", error_code="SCHED_INSUFFICIENT_GPU_MEMORY", requests=requests)
    found = Site(nodes, [pod("holds", "a", ("GPU-a-0", 4000)), pending])
    found.extender.explanations["ai", "waits"] = {
        "pod": "ai/waits", "phase": "pending", "node": None,
        "summary": "0/3 nodes available: 2 GPU memory insufficient", "remedy": "Ask for less.",
        "nearest": "a", "gates": [], "nodes": [
            {
                "node": "a", "fits": False, "code": "SCHED_INSUFFICIENT_GPU_MEMORY",
                "advice": "ask for at most 16000MB",
                "message": "GPU memory insufficient (requested 99000MB, available 16000MB)", "curable": True,
                "waits_for": ["ai/holds"], "evictable": [], "examined": True,
            }
        ],
    }  # fmt: skip
    return found


def test_the_overview_answers_how_full_it_is_and_who_waits(site: Site) -> None:
    """In numbers with units."""
    text = site.page("/")
    assert "<b>1 of 3</b> GPUs in use" in text
    assert '<span class="number">8</span> %</b> of memory allocated' in text
    assert 'The largest request that fits is <span class="number">16,000</span> MiB on one NVIDIA A100' in text
    assert "99,000 MiB, 30 % of cores" in text
    assert ">16 min</time>" in text
    assert 'href="/pods/ai/waits"' in text
    assert "SCHED_INSUFFICIENT_GPU_MEMORY" in text


def test_the_list_of_pods_says_why_a_pod_is_pending_by_the_code_of_the_cause() -> None:
    """Also of a pod that the extender never rejected, because another rule keeps kube-scheduler from it."""
    gated = pod(
        "gated", reason="the scheduling gate x/y keeps kube-scheduler from trying the pod", reason_code="SCHED_GATED"
    )
    site = Site([node("a", gpu("a", 0))], [gated])

    for page in ("/pods", "/", "/pods?code=SCHED_GATED"):
        text = site.page(page)
        assert "the scheduling gate x/y keeps" in text, page
        assert "SCHED_GATED" in text, page


def test_a_pending_pod_shows_its_cause_and_the_nearest_of_many_nodes(site: Site) -> None:
    """Four hundred lines in the order of names hide the one that matters."""
    code, taint = "SCHED_INSUFFICIENT_GPU_MEMORY", "SCHED_NODE_TAINT"
    nodes = [
        {
            "node": f"n{number}", "fits": False, "code": code if number < 4 else taint, "message": "full",
            "curable": False, "advice": "", "waits_for": [], "evictable": [],
        }
        for number in range(402)
    ]  # fmt: skip
    site.extender.explanations["ai", "waits"] = {
        "pod": "ai/waits", "phase": "pending", "node": None, "summary": "0/402", "remedy": "Wait.", "nodes": nodes,
        "causes": [
            {"code": code, "message": "GPU memory insufficient on n0 and 3 nodes more", "advice": "Request less."},
            {"code": taint, "message": "the taint team=ml", "advice": "Add a toleration."},
        ],
        "groups": [
            {"code": code, "message": "GPU memory insufficient", "nodes": 4, "nearest": "n0"},
            {"code": taint, "message": "taint not tolerated", "nodes": 398, "nearest": "n4"},
        ],
    }  # fmt: skip

    page = site.page("/pods/ai/waits")
    every = site.page("/pods/ai/waits?nodes=all")

    assert page.index("GPU memory insufficient on n0 and 3 nodes more") < page.index("Request less.")
    assert page.index("Request less.") < page.index("the taint team=ml")
    assert "The nearest 5 of 402 nodes" in page
    assert [f'href="/nodes/n{number}"' in page for number in (0, 4, 5)] == [True, True, False]
    assert "398</span> × taint not tolerated" in page
    assert 'href="/pods/ai/waits?nodes=all"' in page
    assert all(f'href="/nodes/n{number}"' in every for number in range(402))


def test_a_node_shows_each_gpu_as_a_bar_with_its_words_beside(site: Site) -> None:
    """For who does not see the colours."""
    text = site.page("/nodes")
    assert "GPU 0 of a: 4,000 of 16,000 MiB allocated to 1 containers, ok" in text
    assert "GPU 0 of b: 0 of 16,000 MiB allocated to 0 containers, unhealthy" in text
    assert "✕ unhealthy" in text
    assert "XID 79: fell off the bus" in text
    assert "node not registered" in text
    page = site.page("/nodes/a")
    assert 'href="/pods/ai/holds"' in page
    assert "unknown</abbr> used" in page
    assert "it is not measured: give --monitor-service or --prometheus" in page
    assert 'href="/nodes?label=pool%3Da"' in page


def test_what_is_used_is_shown_where_it_is_measured_and_unknown_elsewhere() -> None:
    """Never as zero; a pod that uses more than it was allocated stands out."""
    mib = 1 << 20
    nodes = [node("a", gpu("a", 0, 4000), gpu("a", 1, 4000))]
    pods = [pod("over", "a", ("GPU-a-0", 4000)), pod("quiet", "a", ("GPU-a-1", 4000))]
    measured = Site(nodes, pods, measured=True)
    assert "<b>unknown</b> of memory used" in measured.page("/")
    measured.meter.used = snapshots.Used(
        {"GPU-a-0": 5000 * mib}, {"ai/over": 5000 * mib}, {("ai/over", "GPU-a-0"): 5000 * mib}
    )
    measured.source.refresh()

    assert [one["used_mib"] for one in json.loads(measured.page("/api/v1/pods"))["items"]] == [5000, None]
    assert '<td class="right over"><span class="number">5,000</span> ▲ over</td>' in measured.page("/pods")
    page = measured.page("/nodes/a")
    assert '<rect class="used" width="312.5"' in page
    assert "unknown</abbr> used" in page
    assert "<b>unknown</b> of memory used" in measured.page("/")

    measured.meter.used = snapshots.Used({"GPU-a-0": 5000 * mib, "GPU-a-1": 0}, {}, {})
    measured.source.refresh()
    assert '<b><span class="number">16</span> %</b> of memory used' in measured.page("/")


def test_a_prometheus_is_asked_in_its_own_words() -> None:
    """By the real client; one that is away is trouble of its own."""

    def answer() -> tuple[int, bytes]:
        sample = {"metric": {"device": "GPU-a", "namespace": "ai", "pod": "p"}, "value": [1, "1048576"]}
        return 200, json.dumps({"status": "success", "data": {"result": [sample]}}).encode()

    with serving(answer) as url:
        found = meters.Prometheus(url, lambda: 7.0).read()
    amount = 1048576.0
    assert found == snapshots.Used(
        {"GPU-a": amount}, {"ai/p": amount}, {("ai/p", "GPU-a"): amount}, {"GPU-a": amount}, 7.0
    )
    with pytest.raises(meters.NoAnswer, match="Prometheus does not answer"):
        meters.Prometheus("http://127.0.0.1:1").read()


def test_a_prometheus_knows_more_than_an_hour() -> None:
    """Of the cluster or of a node; what it does not know is a gap, and a lie is no number."""
    asked: list[str] = []

    def curve(*values: Any) -> bytes:
        result = [{"metric": {}, "values": list(values)}] if values else []
        return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(urllib.parse.unquote_plus(path))
        if "allocated" in path:
            return 200, curve([60, "2097152"], [120, "4194304"])
        return 200, curve([120, "1048576"], [180, "NaN"])

    with serving(answer) as url:
        found = meters.Prometheus(url, lambda: 7200.0).series('a"b', "", 3600.0)
    assert (found.at, found.allocated_mib, found.used_mib) == ((60, 120, 180), (2, 4, None), (None, 1, None))
    assert found.words == "In the last 2 minutes: allocated 2 to 4 MiB, now unknown; used 1 to 1 MiB, now unknown."
    with serving(answer) as url:
        meters.Prometheus(url, lambda: 7200.0).series("", "ai/p", 3600.0)
    assert 'sum(hami_vgpu_allocated_memory_bytes{namespace="ai",pod="p"})' in asked[2]
    assert 'query=sum(hami_gpu_allocated_memory_bytes{node="a\\"b"})&start=3600.0&end=7200.0' in asked[0]
    with serving(lambda: (200, curve([1, "many"]))) as url, pytest.raises(meters.NoAnswer, match="is no number"):
        meters.Prometheus(url).series("", "", 3600.0)
    with serving(lambda: (200, curve())) as url:
        assert meters.Prometheus(url).series("", "", 3600.0).words == "Nothing has been measured yet."


def test_a_waiting_pod_is_explained_and_one_that_holds_shows_its_gpus(site: Site) -> None:
    """Node by node, with what would change it."""
    text = site.page("/pods/ai/waits")
    for part in (
        "0/3 nodes available: 2 GPU memory insufficient",
        "Ask for less.",
        "ask for at most 16000MB",
        "It fits once these have ended: ai/holds",
        "kubectl -n ai describe pod waits",
    ):
        assert part in text
    assert "GPU-a-0" in site.page("/pods/ai/holds")
    asked = site.extender.asked
    site.page("/pods/ai/waits")
    assert site.extender.asked == asked  # Viewers of the same pod share an answer for a moment.
    site.extender.is_away = True
    site.now += 5
    assert "Why it is pending cannot be read now: the extender does not answer" in site.page("/pods/ai/waits")
    site.source.refresh()
    asked = site.extender.asked
    assert "Why it is pending cannot be read now: the extender does not answer" in site.page("/pods/ai/waits")
    assert site.extender.asked == asked  # Nobody waits for one that is known to be away.


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "a b c"), ("?q=A", "a"), ("?state=unhealthy", "b"), ("?model=NVIDIA+A100", "a b"), ("?free=16000", "a"),
        ("?free=16001", ""), ("?namespace=ai", "a"), ("?sort=fullest", "a b c"), ("?model=x", ""),
        ("?page=99", "a b c"), ("?label=pool", "a b c"), ("?label=pool%3Db", "b"), ("?label=pool%3D", ""),
        ("?label=x", ""), ("?level=1-24", "a"), ("?level=0", "b c"), ("?level=x", ""), ("?sort=x", "a b c"),
    ],
)  # fmt: skip
def test_filters_are_in_the_url_and_narrow_the_list(site: Site, query: str, found: str) -> None:
    """On the page and in the JSON API alike."""
    listed = json.loads(site.page(f"/api/v1/nodes{query}"))
    assert " ".join(node["name"] for node in listed["items"]) == found
    text = site.page(f"/nodes{query}")
    for name in "abc":
        assert (f'href="/nodes/{name}"' in text) is (name in found.split())


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "holds waits"), ("?state=pending", "waits"), ("?q=HOLD", "holds"), ("?namespace=other", ""),
        ("?sort=largest", "holds waits"), ("?sort=node", "waits holds"), ("?sort=oldest", "holds waits"),
        ("?code=SCHED_INSUFFICIENT_GPU_MEMORY", "waits"), ("?code=UNDECIDED", ""), ("?sort=unused", "holds waits"),
    ],
)  # fmt: skip
def test_pods_are_filtered_too(site: Site, query: str, found: str) -> None:
    """By state, name and namespace."""
    assert " ".join(one["name"] for one in json.loads(site.page(f"/api/v1/pods{query}"))["items"]) == found


def test_an_extender_that_is_away_leaves_the_last_data_marked_old(site: Site) -> None:
    """Never an empty page; and what comes back is shown."""
    assert "live" in site.page("/")
    site.extender.is_away = True
    site.source.refresh()
    text = site.page("/")
    assert "no newer data: the extender does not answer: Connection refused" in text
    assert "<b>1 of 3</b> GPUs in use" in text
    site.extender.is_away = False
    site.source.refresh()
    assert "no newer data" not in site.page("/")

    site.extender.answers["nodes"] = {"nodes": [{"wrong": 1}]}
    site.source.refresh()
    assert "an answer of the extender about" in site.page("/")
    assert "<b>1 of 3</b> GPUs in use" in site.page("/")


def test_before_the_first_answer_the_page_says_what_it_waits_for() -> None:
    """With status 200: the pages are up."""
    empty = Site([], [])
    empty.source._view = models.View()
    assert "the scheduler extender has not answered" in empty.page("/")


def test_before_the_first_answer_nothing_is_said_not_to_exist() -> None:
    """A node or pod that is there would be reported as gone while the WebUI starts; 503 says: not known yet."""
    empty = Site([node("gpu-1", gpu("gpu-1", 0))], [])
    empty.source._view, empty.source.problem = models.View(), "nothing has been read yet"
    for path in ("/nodes/gpu-1", "/api/v1/nodes/gpu-1", "/pods/ai/one", "/api/v1/pods/ai/one"):
        assert "nothing has been read yet" in empty.page(path, 503), path


def test_how_gpus_are_isolated_and_what_is_wrong_with_a_node_stands_on_its_pages() -> None:
    """A tenant's neighbour can use all memory of a GPU that nothing limits."""
    nodes = [
        node("free", gpu("free", 0, mode="none"), problems={"PLUGIN_MEMORY_NOT_LIMITED": f"1 of 1 GPUs: {EVIL}"}),
        node("kept", gpu("kept", 0, mode="hami-core")),
    ]
    site = Site(nodes, [])
    page = site.page("/nodes/free")
    assert "Isolation none: the memory of containers is not limited." in page
    assert "PLUGIN_MEMORY_NOT_LIMITED" in page
    assert "1 of 1 GPUs: &lt;script&gt;" in page
    assert "devicePlugin.hamiCore" in page  # What to do.
    assert "Isolation hami-core." in site.page("/nodes/kept")
    listed = site.page("/nodes")
    assert "isolation none" in listed
    assert "isolation hami-core" in listed


def test_a_cluster_without_gpus_says_what_to_do() -> None:
    """An empty state is a sentence."""
    bare = Site([], [])
    assert "Label GPU nodes gpu=on" in bare.page("/")
    assert "No match." in bare.page("/nodes")
    assert "pods are listed once they request nvidia.com/gpu" in bare.page("/pods")


def test_names_from_the_cluster_are_text_whatever_they_are() -> None:
    """Markup, any script, very long ones."""
    labels = {"x" * 10_000: EVIL, EVIL: "y" * 10_000}
    nodes = [node(EVIL, gpu("x", 0, 100, type="“ﷺ” \u202e" * 500, healthy=False, unhealthy_reason=EVIL), labels=labels)]
    site = Site(
        nodes, [pod("p" * 10_000, EVIL, ("GPU-x-0", 100), namespace=EVIL), pod("\ud83d\ude00", error_code=EVIL)]
    )
    key = f"{EVIL.replace('/', '%2F')}/" + "p" * 10_000
    site.extender.events[EVIL, "p" * 10_000] = [event(EVIL, EVIL)]
    for path in ("/", "/nodes", "/pods", "/nodes?label=" + EVIL, "/search?q=" + EVIL, "/nodes/" + EVIL, f"/pods/{key}"):
        assert EVIL not in site.client.get(path).text
    assert "&lt;script&gt;" in site.page("/nodes")


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/nodes/nobody", 404, "There is no node nobody."), ("/pods/ai/nobody", 404, "There is no pod ai/nobody"),
        ("/nothing", 404, "not found"), ("/nodes?page=x", 400, "page must be a whole number"),
        ("/nodes?free=-1", 400, "free must be a whole number"), ("/pods?page=99999999999", 400, "page must be"),
        ("/api/v1/nodes?free=1e3", 400, "free must be"), ("/api/v1/nothing", 404, "not found"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_page_that_helps(site: Site, path: str, status: int, sentence: str) -> None:
    """With the right status."""
    text = site.page(path, status)
    assert sentence in text
    assert ("all nodes" in text) is not path.startswith("/api/")


def test_a_page_that_has_not_changed_is_not_sent_again(site: Site) -> None:
    """Viewers poll."""
    first = site.client.get("/nodes")
    again = site.client.get("/nodes", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    site.now += 5
    site.source.refresh()
    assert site.client.get("/nodes", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200


def test_nothing_foreign_runs_in_the_page_and_no_other_host_is_answered(site: Site) -> None:
    """No inline script or style, no third party, no rebinding of names, nothing to write."""
    answer = site.client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for path in ("/", "/nodes", "/nodes/a", "/pods", "/pods/ai/waits"):
        text = site.page(path)
        assert "style=" not in text
        assert "onclick" not in text
        assert "https://" not in text
    for host in ("evil.example", "evil.example:8088", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert site.client.get("/", headers={"Host": host}).status_code == 400
    for host in ("localhost:8088", "127.0.0.1:8088", "[::1]:8088", "localhost"):
        assert site.client.get("/", headers={"Host": host}).status_code == 200
    assert site.client.post("/nodes").status_code == 405


def test_a_trusted_proxy_says_who_looks_and_nobody_else_may() -> None:
    """Whoever else sends the header is refused."""
    gate = access.Proxied([ipaddress.ip_network("10.1.0.0/16")], "X-Forwarded-User")
    proxied = Site([], [], gate=gate, auth="proxy", hosts=frozenset({"gpus"}))

    def asked(address: str, **headers: str) -> tuple[int, str]:
        answer = proxied.client.get("/", headers={"Host": "gpus", **headers}, environ_base={"REMOTE_ADDR": address})
        return answer.status_code, answer.text

    status, text = asked("10.1.2.3", **{"X-Forwarded-User": "ada<b>"})
    assert status == 200
    assert '<span class="user">ada&lt;b&gt;</span>' in text
    assert asked("::ffff:10.1.2.3", **{"X-Forwarded-User": "ada"})[0] == 200
    assert asked("10.1.2.3")[0] == 401
    for address in ("10.2.0.1", "127.0.0.1", "::1", ""):
        assert asked(address, **{"X-Forwarded-User": "ada"})[0] == 403
    assert asked("10.1.2.3", **{"Host": "localhost", "X-Forwarded-User": "ada"})[0] == 400
    good = settings.parse(
        ["--bind", ":8088", "--auth", "proxy", "--trusted-proxy", "10.0.0.0/8, fd00::/8", "--hosts", "GPUs.example"], {}
    )
    assert len(good.trusted_proxies) == 2
    assert "gpus.example" in good.hosts


def test_a_page_model_that_fails_is_a_page_not_a_traceback(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours."""

    def fail(found: models.View, wanted: models.Filters) -> models.Page[models.Node]:
        raise RuntimeError("defect")

    monkeypatch.setattr(lists, "nodes", fail)
    assert "This page failed; see the log of the WebUI." in site.page("/nodes", 500)


def test_five_thousand_nodes_are_paged() -> None:
    """A page is no longer for it."""
    nodes = [
        node(f"node-{index:04d}", gpu(f"n{index}", 0, 16_000 if index < 1234 else 0, healthy=index != 7))
        for index in range(5000)
    ]
    site = Site(nodes, [])
    text = site.page("/")
    assert 'aria-label="1,233 nodes with NVIDIA A100: 100 % allocated"' in text
    assert 'aria-label="1 nodes with NVIDIA A100: a GPU is unhealthy"' in text
    assert len(text) < 30_000
    text = site.page("/nodes?page=100")
    assert "5,000 found, page 100 of 100" in text
    assert text.count('class="node"') == 50
    assert 'rel="prev" href="/nodes?page=99"' in text


def strategy(operation: Any) -> Any:
    return operation.ok().as_strategy()


def serving(answer: Callable[..., tuple[int, bytes]]) -> contextlib.AbstractContextManager[str]:
    """A server that says something, and shows what token it was sent."""

    def told(request: http.server.BaseHTTPRequestHandler) -> tuple[int, bytes]:
        status, body = answer(request.path) if inspect.signature(answer).parameters else answer()
        return status, body + request.headers.get("Authorization", "").encode()

    return liar.serving(told)


def test_the_pages_show_what_remediation_did_and_what_it_does_not_do(site: Site) -> None:
    """On the overview of all nodes, on a node's page of that node; nothing where there is nothing."""
    assert "Remediation" not in site.page("/") + site.page("/nodes/b")
    act = read_api_types.RemediationAct("b", "GPU-b-0", "evict-pods", "evict", f"XID 79: {EVIL}", "cool-down", 40)
    did = read_api_types.RemediationEntry("b", "GPU-b-0", "cordon-gpu", "cordon", [1], holds=True)
    tried = read_api_types.RemediationEntry("a", "", "restart-mps", "mps", [1, 2], holds=False)
    tainted = read_api_types.RemediationEntry("a", "", "taint-node", "taint", [1], holds=False)
    again = read_api_types.RemediationAct("b", "GPU-b-0", "cordon-gpu", "cordon", "XID 79", "cool-down", 3_599)
    site.extender.remediated = read_api_types.Remediation(
        mode="on",
        leading=True,
        breaker="open",
        budget_left=7,
        affected_nodes=3,
        acts=[act, again],
        history=[tried, did, tainted],
    )
    site.source.refresh()

    overview, page = site.page("/"), site.page("/nodes/b")
    for shown in (overview, page):
        assert EVIL not in shown
        for part in ("evict-pods", "cool-down, 40 s", "cordon-gpu", "in effect", "breaker open", "XID 79"):
            assert part in shown, part
        assert "3599 s" not in shown  # What is in effect is not shown as waiting too.
    assert "done 2 times in a day" in overview
    assert "done once in a day" in overview
    assert "restart-mps" not in page


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (500, b"", "the extender answers 500"), (401, b"{}", "answers 401"), (200, b"<html>", "cannot be read"),
        (200, b"", "cannot be read"), (200, b'{"nodes": 7}', "cannot be read"),
        (200, b"{}", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_answers_of_the_extender_are_trouble_and_no_crash(status: int, body: bytes, sentence: str) -> None:
    """By its real client."""
    with serving(lambda: (status, body)) as url:
        kept = extender_poller.Source(extender_poller.Extender(url, None, None))
        kept.refresh()
    assert sentence in kept.problem
    assert kept.view == models.View()


def test_an_extender_that_hangs_holds_no_page_for_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its real client: the page comes without."""
    monkeypatch.setattr(extender_poller, "_PAGE_SECONDS", 0.2)
    free = threading.Event()

    def hang() -> tuple[int, bytes]:
        free.wait(20)
        return 200, b"{}"

    with serving(hang) as url:
        monkeypatch.setattr(site.extender, "get", extender_poller.Extender(url, None, None).get)
        text = site.page("/pods/ai/waits")
        free.set()
    assert "Why it is pending cannot be read now: the extender does not answer: timed out" in text
    assert "ai/waits" in text


def test_the_token_is_read_anew_for_each_call(tmp_path: Any) -> None:
    """Kubernetes renews it on disk."""
    token = tmp_path / "token"
    with serving(lambda: (200, b'"')) as url:
        extender = extender_poller.Extender(url, None, token)
        for text in ("one", "two"):
            token.write_text(f"{text}\n")
            with contextlib.suppress(extender_poller.NoAnswer):
                assert extender.get(str, "x") == f"Bearer {text}"
        token.unlink()
        with pytest.raises(extender_poller.NoAnswer):
            extender.get(str, "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bind", ":8088"], ["--bind", "10.0.0.1:8088"], ["--extender", "localhost"], ["--auth", "magic"],
        ["--threads", "0"], ["--auth", "proxy"], ["--auth", "proxy", "--trusted-proxy", "10.0.0.1/8"],
        ["--bind", ":8088", "--trusted-proxy", "10.0.0.0/8"], ["--prometheus", "localhost"],
        ["--monitor-service", "hami-monitor"], ["--monitor-service", "a/b:x"],
    ],
)  # fmt: skip
def test_settings_that_would_show_the_cluster_to_everybody_are_refused(arguments: list[str]) -> None:
    """Or that make no sense."""
    with pytest.raises(errors.SettingsError):
        settings.parse(arguments, {})
    assert settings.parse([], {}).bind.port == 8088
    found = settings.parse(["--auth", "kubernetes", "--bind", ":8088", "--monitor-service", "gpus/monitor:41991"], {})
    assert found.monitor_service == meters.Service("gpus", "monitor", 41991)


def test_a_pods_page_tells_its_story(site: Site) -> None:
    """In the order in which it happened, by whom, how often; and says where it cannot be read."""
    note = "Successfully assigned pod to a\n    GPU: 1/2, Memory: 4000MB\n    Score: 85, Policy: binpack"
    site.extender.events["ai", "holds"] = [
        event("Scheduled", note),
        event("Allocated", "GPU-a-0", reporter="hami-device-plugin"),
        event("Unhealthy", "It broke", type="Warning", count=7),
    ]
    text = site.page("/pods/ai/holds")
    told = text[text.index('class="story"') :]
    places = [
        told.index(part) for part in ("Created", "Scheduled", "Score: 85, Policy: binpack", "Allocated", "It broke")
    ]
    assert places == sorted(places)
    assert "by hami-device-plugin" in told
    assert "7 times, last" in told
    assert '<b class="warning">Unhealthy</b>' in told
    assert re.search(r"placed <time[^>]+>8 min</time> ago", text)
    assert "No events: the API server keeps them for one hour" in site.page("/pods/ai/waits")
    site.extender.is_away = True
    site.now += 5
    assert "Its events cannot be read now: the extender does not answer" in site.page("/pods/ai/holds")


def test_what_happened_is_told_by_comparing_two_looks(site: Site) -> None:
    """Placed, refused, ended, unhealthy, healthy, added, gone; nothing where nothing changed."""

    def told() -> list[tuple[str, str, str, str]]:
        found = json.loads(site.page("/api/v1/changes"))
        return [(one["what"], one["pod"], one["node"], one["code"]) for one in found]

    assert told() == [("placed", "ai/holds", "a", "")]
    site.source.refresh()
    assert len(told()) == 1
    answers = site.extender.answers
    unhealthy = gpu("a", 0, 4000, healthy=False, unhealthy_reason="XID 48")
    answers["nodes"] = {"nodes": [node("a", unhealthy, gpu("a", 1)), node("b", gpu("b", 0)), node("d")]}
    answers["pods"] = {"pods": [pod("new", error_code="SCHED_X"), pod("plain"), pod("waits", "a", ("GPU-a-1", 99))]}
    site.now += 3
    site.source.refresh()
    assert set(told()[:-1]) == {
        ("unhealthy", "", "a", ""), ("healthy", "", "b", ""), ("node added", "", "d", ""), ("node gone", "", "c", ""),
        ("ended", "ai/holds", "a", ""), ("placed", "ai/waits", "a", ""), ("rejected", "ai/new", "", "SCHED_X"),
        ("pending", "ai/plain", "", ""),
    }  # fmt: skip
    text = site.page("/")
    assert "GPU 0: XID 48" in text
    assert 'href="/pods/ai/new"' in text


def test_the_last_hour_is_kept_and_no_more(site: Site) -> None:
    """In a ring: what was unknown is a gap; a node that is gone is forgotten."""
    assert json.loads(site.page("/api/v1/history"))["allocated_mib"] == [4000]
    site.now += 10
    site.source.refresh()
    assert len(json.loads(site.page("/api/v1/history"))["at"]) == 1
    for _ in range(130):
        site.now += 30
        site.source.refresh()
    found = json.loads(site.page("/api/v1/history?node=a"))
    assert len(found["at"]) == 120
    assert found["at"] == sorted(found["at"])
    assert found["at"][-1] == site.now
    assert set(found["used_mib"]) == {None}
    assert found["words"] == "In the last 60 minutes: allocated 4,000 to 4,000 MiB, now 4,000 MiB; used unknown."
    assert found["words"] in site.page("/nodes/a")
    nodes = site.extender.answers["nodes"]["nodes"]
    site.extender.answers["nodes"] = {"nodes": nodes[1:]}
    site.now += 30
    site.source.refresh()
    assert json.loads(site.page("/api/v1/history?node=a"))["words"] == "Nothing has been measured yet."
    site.extender.answers["nodes"] = {"nodes": nodes}
    site.now += 30
    site.source.refresh()
    assert len(json.loads(site.page("/api/v1/history?node=a"))["at"]) == 1
    assert "needs --prometheus URL" in site.page("/api/v1/history?window=1d", 503)
    assert "needs --prometheus URL" in site.page("/api/v1/history?pod=ai/holds", 503)
    assert "There is no pod ai/nobody" in site.page("/api/v1/history?pod=ai/nobody", 404)
    assert "pod must be NAMESPACE/NAME" in site.page("/api/v1/history?pod=holds", 400)
    assert "window must be one of 1h, 6h, 1d, 7d" in site.page("/api/v1/history?window=1y", 400)


def test_longer_history_is_prometheus_business() -> None:
    """And is offered only where there is one."""
    measured = Site([node("a", gpu("a", 0))], [pod("p", "a", ("GPU-a-0", 1))], measured=True)
    assert 'data-window="7d"' in measured.page("/")
    assert "Prometheus does not answer" in measured.page("/api/v1/history?window=6h", 503)
    measured.meter.used = snapshots.Used()
    assert json.loads(measured.page("/api/v1/history?window=6h"))["allocated_mib"] == [1000, 3000]
    assert 'data-history="/api/v1/history?pod=ai/p"' in measured.page("/pods/ai/p")
    assert json.loads(measured.page("/api/v1/history?pod=ai/p"))["used_mib"] == [None, 500]
    assert "data-window" not in Site([], []).page("/")


def test_search_finds_nodes_and_pods_and_goes_to_the_only_one(site: Site) -> None:
    """By any part of a name."""
    assert site.client.get("/search?q=WAITS").headers["Location"] == "/pods/ai/waits"
    assert site.client.get("/search?q=holds").headers["Location"] == "/pods/ai/holds"
    text = site.page("/search?q=a")
    assert 'href="/nodes/a"' in text
    assert 'href="/pods/ai/holds"' in text
    assert "No match." in site.page("/search?q=zzz")


EXPOSITION = """# TYPE hami_gpu_memory_used_bytes gauge
hami_gpu_memory_used_bytes{node="a",device="GPU-a-0"} 2.097152e+09
hami_gpu_memory_used_bytes{node="a",device="GPU-a-1"} NaN
hami_gpu_utilization_percent{node="a",device="GPU-a-0"} 62.4
hami_vgpu_memory_usage_bytes{namespace="ai",pod="holds",container="x",device="GPU-a-0"} 1048576
hami_vgpu_memory_usage_bytes{namespace="ai",pod="holds",container="y",device="GPU-a-0"} 1048576
hami_vgpu_info{namespace="ai",pod="holds",container="y",device="GPU-a-0"} 1
"""


def test_without_a_prometheus_the_monitors_are_asked(site: Site) -> None:
    """In rounds, and the one of a node when its page is looked at; one that is away takes no other along."""
    asked: list[str] = []

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return 200, EXPOSITION.encode()

    now = 500.0
    with serving(answer) as url, concurrent.futures.ThreadPoolExecutor(2) as pool:
        addresses = {"a": url, "b": "http://127.0.0.1:1"}
        monitors = meters.Monitors(lambda: addresses, lambda: now)
        with pytest.raises(meters.NoAnswer, match="have not been read yet"):
            monitors.read()
        monitors.ask_all(pool)
        assert asked == ["/metrics"]
        assert monitors.problem.startswith("1 of 2 monitors do not answer: the monitor of b does not answer")
        found = monitors.read()
        assert found.gpus == {"GPU-a-0": 2.097152e9}
        assert found.shares == {("ai/holds", "GPU-a-0"): 2097152.0}
        assert (found.busy, found.oldest_at) == ({"GPU-a-0": 62.4}, 500.0)
        monitors.measure("a")
        assert len(asked) == 1
        now = 510.0
        monitors.measure("a")
        assert len(asked) == 2
        with pytest.raises(meters.NoAnswer, match="c has no monitor"):
            monitors.measure("c")

        watched = Site(
            site.extender.answers["nodes"]["nodes"], site.extender.answers["pods"]["pods"], monitors=monitors
        )
        page = watched.page("/nodes/a")
        assert '<span class="number">2,000</span> MiB used' in page
        assert "utilization 62 %" in page
        assert "the monitor of b does not answer" in watched.page("/nodes/b")
        assert '<td class="right"><span class="number">2</span></td>' in watched.page("/pods/ai/holds")
        overview = watched.page("/")
        assert "1 of 2 monitors do not answer" in overview

        addresses.clear()
        now = 2000.0
        monitors.ask_all(pool)
        with pytest.raises(meters.NoAnswer, match="there are no monitors"):
            monitors.read()


@hypothesis.given(st.text(alphabet=st.sampled_from('hami_gpu_memory_used_bytes{device="x"} 1.e+\n#\\,"')) | st.text())
def test_a_monitor_that_lies_is_no_answer(text: str) -> None:
    """Or an answer; never a crash."""
    for prefix in ("", "hami_gpu_memory_used_bytes{", "hami_vgpu_memory_usage_bytes"):
        with contextlib.suppress(ValueError):
            meters.read_exposition(prefix + text, 1.0)


class FakeCluster:
    """An API server that knows some tokens, and who may list pods where."""

    def __init__(self) -> None:
        self.users = {"token-admin": "admin", "token-ada": "ada", "token-nobody": "nobody"}
        self.allowed = {("admin", ""), ("ada", "ai")}
        self.reviews = 0
        self.is_away = False

    def ask(self, question: Callable[[Any], Any]) -> Any:
        return asyncio.run(question(self))

    async def review(self, path: str, body: bytes, timeout_seconds: float) -> bytes:
        if self.is_away:
            raise errors.Unavailable("connection refused")
        self.reviews += 1
        spec = json.loads(body)["spec"]
        if path.endswith("tokenreviews"):
            user = self.users.get(spec["token"])
            return json.dumps({"status": {"authenticated": bool(user), "user": {"username": user or ""}}}).encode()
        wanted = spec["resourceAttributes"]
        assert (wanted["verb"], wanted["resource"]) == ("list", "pods")
        return json.dumps({"status": {"allowed": (spec["user"], wanted.get("namespace", "")) in self.allowed}}).encode()


class SignedSite(Site):
    """One that asks the cluster who looks."""

    def __init__(self, nodes: list[Any], pods: list[Any]) -> None:
        self.cluster = FakeCluster()
        fake: Any = self.cluster
        self.ticks = 0.0
        self.sessions = access.Sessions(lambda: self.ticks)
        gate = access.Reviewed(fake, self.sessions, lambda: self.ticks)
        super().__init__(nodes, pods, gate=gate, sessions=self.sessions, auth="kubernetes")

    def sign_in(self, token: str, **more: str) -> Any:
        form = self.client.get("/login", base_url="https://localhost").text
        csrf = re.findall(r'name="csrf_token" value="([^"]+)"', form)[0]
        return self.client.post(
            "/login", data={"token": token, "csrf_token": csrf, **more}, base_url="https://localhost"
        )

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers, base_url="https://localhost")


@pytest.fixture
def signed() -> SignedSite:
    """Two namespaces on one GPU, and a pod that waits for the other's."""
    found = SignedSite(
        [node("a", gpu("a", 0, 6000))],
        [
            pod("mine", "a", ("GPU-a-0", 4000)),
            pod("waits", error_code="SCHED_X"),
            pod("theirs", "a", ("GPU-a-0", 2000), namespace="secret"),
        ],
    )
    found.extender.explanations["ai", "waits"] = {
        "pod": "ai/waits", "phase": "pending", "node": None, "summary": "0/1", "remedy": "Wait.",
        "nearest": "a", "gates": [], "nodes": [
            {
                "node": "a", "fits": False, "code": "SCHED_X", "advice": "", "message": "full", "curable": True,
                "waits_for": ["ai/mine", "secret/theirs"], "evictable": [], "examined": True,
            }
        ],
    }  # fmt: skip
    return found


def test_one_sees_the_pods_of_the_namespaces_that_one_may_list(signed: SignedSite) -> None:
    """Others' slices have no name, on no page and in no answer; totals are of the whole cluster."""
    assert signed.get("/pods").headers["Location"] == "/login?next=/pods"
    answer = signed.sign_in("token-ada", next="/pods?state=running")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/pods?state=running")
    cookie = answer.headers["Set-Cookie"]
    assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=Lax"))
    assert "token-ada" not in cookie
    paths = (
        "/", "/nodes", "/nodes/a", "/pods", "/pods/ai/waits", "/search?q=theirs", "/api/v1/pods", "/api/v1/nodes",
        "/api/v1/nodes/a", "/api/v1/changes", "/api/v1/history", "/api/v1/overview", "/nodes?namespace=secret",
    )  # fmt: skip
    for path in paths:
        page = signed.get(path)
        assert page.status_code == 200
        assert "secret/theirs" not in page.text, path
        assert "token-ada" not in page.text
    assert "You see the pods of: ai." in signed.get("/").text
    assert '<span class="number">6,000</span> MiB of' in signed.get("/").text
    assert "of another namespace" in signed.get("/nodes/a").text
    assert "ai/mine, 1 of other namespaces" in signed.get("/pods/ai/waits").text
    assert signed.get("/pods/secret/theirs").status_code == 404
    assert signed.get("/api/v1/pods/secret/theirs").status_code == 404
    assert signed.get("/api/v1/history?pod=secret/theirs").status_code == 404
    assert json.loads(signed.get("/api/v1/nodes?namespace=secret").text)["total"] == 0
    assert "secret/theirs" in signed.get("/pods", Authorization="Bearer token-admin").text
    assert "secret/theirs" not in signed.get("/pods").text


def test_reviews_are_remembered_for_a_minute_and_outlive_a_short_silence(signed: SignedSite) -> None:
    """Rights that were taken away end; an API server that is away signs nobody out at once, and lets nobody new in."""
    signed.sign_in("token-ada")
    signed.get("/pods")
    before = signed.cluster.reviews
    signed.get("/pods?q=x")
    assert signed.cluster.reviews == before
    signed.ticks += 61
    signed.cluster.is_away = True
    assert signed.get("/pods?q=y").status_code == 200
    assert "The cluster does not answer who you are" in signed.get("/", Authorization="Bearer token-admin").text
    signed.ticks += 600
    assert signed.get("/pods?q=z").status_code == 503
    signed.cluster.is_away = False
    signed.cluster.allowed.clear()
    answer = signed.get("/pods")
    assert answer.status_code == 403
    assert "ada may list the pods of no namespace" in answer.text
    signed.cluster.users.clear()
    signed.ticks += 61
    assert signed.get("/pods").status_code == 302


def test_a_new_namespace_is_asked_about_when_it_appears(signed: SignedSite) -> None:
    """Within the minute."""
    signed.cluster.allowed.add(("ada", "later"))
    signed.sign_in("token-ada")
    assert "later" not in signed.get("/pods").text
    pods = signed.extender.answers["pods"]["pods"]
    signed.extender.answers["pods"] = {"pods": [*pods, pod("x", "a", ("GPU-a-0", 1), namespace="later")]}
    signed.source.refresh()
    assert "later/x" in signed.get("/pods").text


@pytest.mark.parametrize(
    ("token", "status", "sentence"),
    [
        ("wrong-token", 401, "does not know that token"), ("", 401, "not a token of a cluster"),
        ("ü", 401, "not a token of a cluster"), ("x" * 20_000, 401, "not a token of a cluster"),
        ("token-nobody", 403, "nobody may list the pods of no namespace"),
        ("<script>", 401, "not a token of a cluster"), ("y" * 100_000, 413, "exceeds the capacity limit"),
    ],
)  # fmt: skip
def test_a_token_without_rights_is_told_what_is_missing(
    signed: SignedSite, token: str, status: int, sentence: str
) -> None:
    """On the page where one signs in; in the JSON API as a status."""
    answer = signed.sign_in(token)
    assert (answer.status_code, sentence in answer.text) == (status, True)
    assert signed.get("/api/v1/pods").status_code == 401
    if token.isascii():
        assert signed.get("/api/v1/pods", Authorization=f"Bearer {token}").status_code in (401, 403)


def test_one_signs_out_and_a_session_ends_by_itself(signed: SignedSite) -> None:
    """The number is worth nothing then; a form of elsewhere signs nobody in or out; nobody is led astray."""
    signed.sign_in("token-ada")
    assert signed.client.post("/logout", base_url="https://localhost").status_code == 400
    assert signed.client.post("/login", data={"token": "token-admin"}, base_url="https://localhost").status_code == 400
    assert signed.get("/").status_code == 200
    csrf = re.findall(r'name="csrf_token" value="([^"]+)"', signed.get("/logout").text)[0]
    signed.client.post("/logout", data={"csrf_token": csrf}, base_url="https://localhost")
    assert signed.get("/").status_code == 302
    assert signed.get("/", **{"HX-Request": "true"}).status_code == 401
    signed.sign_in("token-ada")
    signed.ticks += 8 * 3600 + 1
    assert signed.get("/").status_code == 302
    for evil in ("https://evil.example/", "//evil.example", "/\\evil.example", "/x\ny", "evil", ""):
        assert signed.sign_in("token-ada", next=evil).headers["Location"] == "/"


def test_sessions_are_bounded() -> None:
    """Whoever has not looked for longest goes first."""
    sessions = access.Sessions(lambda: 1.0)
    numbers = [sessions.begin("t") for _ in range(10_001)]
    assert (sessions.token(numbers[0]), sessions.token(numbers[1])) == ("", "t")


def test_monitors_are_found_by_their_service(tmp_path: pathlib.Path) -> None:
    """By the EndpointSlices that a real Service would have, on the lab's API server."""
    with api_server.running() as server:
        path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
        for name, service, port, addresses in (
            ("one", "hami-monitor", 41991, ["10.0.0.1"]),
            ("six", "hami-monitor", 41991, ["fd00::1"]),
            ("health", "hami-monitor", 8081, ["10.0.0.1"]),
            ("other", "other", 41991, ["10.0.0.9"]),
        ):
            server.request("POST", path, {
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
                "endpoints": [{"addresses": addresses, "nodeName": f"node-{name}"}, {"addresses": ["10.9.9.9"]}],
                "ports": [{"port": port}],
            })  # fmt: skip
        reached = cluster.Cluster(server.write_kubeconfig(tmp_path / "kubeconfig"))
        reached.start()
        book = meters.AddressBook(reached, meters.Service("default", "hami-monitor", 41991))
        found = book.read()
        assert found == {"node-one": "http://10.0.0.1:41991", "node-six": "http://[fd00::1]:41991"}
    with pytest.raises(meters.NoAnswer, match="addresses of the monitors cannot be read"):
        book.read()
    reached.stop()


@pytest.mark.slow
@pytest.mark.hypothesis
def test_the_json_api_is_what_its_description_says(site: Site) -> None:
    """Every path, valid and not."""
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", site.client.application)
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    seen = 0
    for operation in schema.get_all_operations():

        @hypothesis.settings(max_examples=searching.examples(25), suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=strategy(operation))
        def check(case: Any) -> None:
            case.call_and_validate(checks=checks)

        check()
        seen += 1
    assert seen == 7
    for path, names in (
        ("/api/v1/nodes/{name}", {"name": "a"}),
        ("/api/v1/pods/{namespace}/{name}", {"namespace": "ai", "name": "waits"}),
    ):
        answer = schema[path]["GET"].Case(path_parameters=names).call_and_validate(checks=checks)
        assert answer.status_code == 200


def series(site: Site, name: str) -> dict[str, float]:
    """The samples of one series, by their labels as printed."""
    lines = site.metrics.exposition()[0].decode().splitlines()
    found = (re.fullmatch(rf"{name}(\{{.*\}})? (\S+)", line) for line in lines)
    return {match[1] or "": float(match[2]) for match in found if match}


def test_requests_are_counted_by_page_and_status(site: Site) -> None:
    """A page that is slow or fails for users is found without them; answers from the cache count like others."""
    site.page("/nodes")
    site.page("/nodes")
    site.page("/nodes/zz", status=404)
    site.page("/nowhere", status=404)
    site.page("/", status=400, Host="evil.example")

    assert series(site, "hami_webui_requests_total") == {
        '{page="pages.nodes",status="200"}': 2.0,
        '{page="pages.node",status="404"}': 1.0,
        '{page="unknown",status="404"}': 1.0,
        '{page="pages.overview",status="400"}': 1.0,
    }
    assert series(site, "hami_webui_request_duration_seconds_count")['{page="pages.nodes"}'] == 2.0


def test_the_age_of_the_data_and_the_viewers_are_series(site: Site) -> None:
    """Old data is marked on the pages, which may have no viewer; an alert needs a number."""
    site.page("/")
    assert (series(site, "hami_webui_viewers"), series(site, "hami_webui_data_age_seconds")) == ({"": 1.0}, {"": 0.0})
    site.now += 301

    assert (series(site, "hami_webui_viewers"), series(site, "hami_webui_data_age_seconds")) == ({"": 0.0}, {"": 301.0})


def test_users_who_sign_in_are_viewers_each(signed: SignedSite) -> None:
    """By their names: behind a proxy or a port-forward all have one address."""
    for token in ("token-admin", "token-ada", "token-ada"):
        assert signed.get("/", Authorization=f"Bearer {token}").status_code == 200
    assert series(signed, "hami_webui_viewers") == {"": 2.0}


def test_the_process_itself_is_no_viewer(site: Site) -> None:
    """Its canary calls the overview periodically."""
    site.client.get("/", headers={"User-Agent": "hami-canary"})
    assert series(site, "hami_webui_requests_total") == {}
    assert series(site, "hami_webui_viewers") == {"": 0.0}
    assert site.metrics.answered_at == float("-inf")
    site.page("/")
    assert site.metrics.answered_at == site.now
