"""The pages by Flask's own client, on made-up answers of the extender: what is on them, and what nobody can break."""

import contextlib
import http.server
import ipaddress
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flask.testing
import pytest

from gpu_sharing.core import errors
from webui import app, models, settings, snapshots, source

EVIL = "<script>alert(1)</script>"


class FakeExtender:
    """Says what it is told to say, or nothing."""

    def __init__(self, nodes: list[Any], pods: list[Any]) -> None:
        self.answers: dict[str, Any] = {"cluster": {}, "nodes": {"nodes": nodes}, "pods": {"pods": pods}}
        self.explanations: dict[tuple[str, str], Any] = {}
        self.is_away = False

    def get(self, *parts: str) -> Any:
        if self.is_away:
            raise source.NoAnswer("the extender does not answer: Connection refused")
        if parts[0] == "explain":
            found = self.explanations.get((parts[1], parts[2]))
            if found is None:
                raise source.NoAnswer("the extender answers 404", is_unknown=True)
            return found
        return self.answers[parts[0]]


def gpu(node: str, index: int, promised: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{node}-{index}", "index": index, "type": "NVIDIA A100", "mode": "", "healthy": True,
        "cordoned": False, "usage_unknown": False, "memory_mib": {"total": 16_000, "promised": promised},
        "cores_percent": {"total": 100, "promised": 30}, "slots": {"total": 10, "promised": int(promised > 0)},
        "exclusive": False, **more,
    }  # fmt: skip


def pod(
    name: str, node: str | None = None, *shares: tuple[str, int], namespace: str = "ai", **more: Any
) -> dict[str, Any]:
    gpus = [{"uuid": uuid, "memory_mib": mib, "cores_percent": 30} for uuid, mib in shares]
    return {
        "namespace": namespace, "name": name, "uid": name, "node": node, "phase": "holding" if node else "waiting",
        "starting": False, "corrupt": False, "foreign_slots": 0, "containers": [gpus], "gpus": gpus, "error_code": "",
        **more,
    }  # fmt: skip


class FakeMeter:
    """Says what is used, or nothing."""

    def __init__(self) -> None:
        self.used: snapshots.Used | None = None

    def read(self) -> snapshots.Used:
        if self.used is None:
            raise source.NoAnswer("Prometheus does not answer: refused")
        return self.used


class Site:
    """The application, and what its extender says."""

    def __init__(self, nodes: list[Any], pods: list[Any], *, measured: bool = False, **options: Any) -> None:
        self.now = 1_000_000.0
        self.extender = FakeExtender(nodes, pods)
        fake: Any = self.extender
        self.meter = FakeMeter()
        meter: Any = self.meter
        self.source = source.Source(fake, meter if measured else None, lambda: self.now)
        self.source.refresh()
        made = app.create(self.source, settings.Settings(**options), lambda: self.now)
        self.client: flask.testing.FlaskClient = made.test_client()

    def page(self, path: str, status: int = 200, **headers: str) -> str:
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.text


@pytest.fixture
def site() -> Site:
    """Three nodes, one of them sick; a pod that holds, one that waits."""
    nodes = [
        {"name": "a", "standing": "none", "foreign_slots": 0, "gpus": [gpu("a", 0, 4000), gpu("a", 1)]},
        {"name": "b", "standing": "none", "foreign_slots": 0, "gpus": [gpu("b", 0, healthy=False)]},
        {"name": "c", "standing": "node_not_registered", "foreign_slots": 0, "gpus": []},
    ]
    waiting = pod("waits", error_code="SCHED_INSUFFICIENT_GPU_MEMORY")
    found = Site(nodes, [pod("holds", "a", ("GPU-a-0", 4000)), waiting])
    found.extender.explanations["ai", "waits"] = {
        "pod": "ai/waits", "phase": "waiting", "node": None,
        "summary": "0/3 nodes available: 2 GPU memory insufficient", "remedy": "Ask for less.",
        "nearest": "a", "gates": [], "nodes": [
            {
                "node": "a", "fits": False, "code": "SCHED_INSUFFICIENT_GPU_MEMORY",
                "advice": "ask for at most 16000MB",
                "sentence": "GPU memory insufficient (requested 99000MB, available 16000MB)", "curable": True,
                "waits_for": ["ai/holds"], "evictable": [],
            }
        ],
    }  # fmt: skip
    return found


def test_the_overview_answers_how_full_it_is_and_who_waits(site: Site) -> None:
    """In numbers with units."""
    text = site.page("/")
    assert "<b>1 of 3</b> GPUs in use" in text
    assert '<span class="number">8</span> %</b> of memory promised' in text
    assert "The largest share of one NVIDIA A100 is" in text
    assert '<span class="number">16,000</span> MiB' in text
    assert 'href="/pods/ai/waits"' in text
    assert "SCHED_INSUFFICIENT_GPU_MEMORY" in text


def test_a_node_shows_each_gpu_as_a_bar_with_its_words_beside(site: Site) -> None:
    """For who does not see the colours."""
    text = site.page("/nodes")
    assert "GPU 0 of a: 4,000 of 16,000 MiB promised to 1 containers, ok" in text
    assert "GPU 0 of b: 0 of 16,000 MiB promised to 0 containers, sick" in text
    assert "✕ sick" in text
    assert "node not registered" in text
    node = site.page("/nodes/a")
    assert 'href="/pods/ai/holds"' in node
    assert "unknown</abbr> used" in node


def test_what_is_used_is_shown_where_it_is_measured_and_unknown_elsewhere() -> None:
    """Never as zero; a pod that uses more than it was promised stands out."""
    mib = 1 << 20
    nodes = [{"name": "a", "standing": "none", "foreign_slots": 0, "gpus": [gpu("a", 0, 4000), gpu("a", 1, 4000)]}]
    pods = [pod("over", "a", ("GPU-a-0", 4000)), pod("quiet", "a", ("GPU-a-1", 4000))]
    measured = Site(nodes, pods, measured=True)
    assert "<b>unknown</b> of memory used" in measured.page("/")
    measured.meter.used = snapshots.Used(
        {"GPU-a-0": 5000 * mib}, {"ai/over": 5000 * mib}, {("ai/over", "GPU-a-0"): 5000 * mib}
    )
    measured.source.refresh()

    assert [one["used_mib"] for one in json.loads(measured.page("/api/v1/pods"))["items"]] == [5000, None]
    assert '<td class="right over"><span class="number">5,000</span></td>' in measured.page("/pods")
    node = measured.page("/nodes/a")
    assert '<rect class="used" width="312.5"' in node
    assert "unknown</abbr> used" in node
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
        found = source.Meter(url).read()
    assert found == snapshots.Used({"GPU-a": 1048576.0}, {"ai/p": 1048576.0}, {("ai/p", "GPU-a"): 1048576.0})
    with pytest.raises(source.NoAnswer, match="Prometheus does not answer"):
        source.Meter("http://127.0.0.1:1").read()


def test_a_waiting_pod_is_explained_and_one_that_holds_shows_its_gpus(site: Site) -> None:
    """Node by node, with what would change it."""
    text = site.page("/pods/ai/waits")
    for part in (
        "0/3 nodes available: 2 GPU memory insufficient", "Ask for less.", "ask for at most 16000MB",
        "It fits once these have ended: ai/holds", "kubectl -n ai describe pod waits",
    ):  # fmt: skip
        assert part in text
    assert "GPU-a-0" in site.page("/pods/ai/holds")
    site.extender.is_away = True
    assert "Why it waits cannot be said now: the extender does not answer" in site.page("/pods/ai/waits")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "a b c"), ("?q=A", "a"), ("?state=sick", "b"), ("?model=NVIDIA+A100", "a b"), ("?free=16000", "a"),
        ("?free=16001", ""), ("?namespace=ai", "a"), ("?sort=fullest", "a b c"), ("?model=x", ""),
        ("?page=99", "a b c"),
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
        ("", "holds waits"), ("?state=waiting", "waits"), ("?q=HOLD", "holds"), ("?namespace=other", ""),
        ("?sort=largest", "holds waits"),
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
    assert "the extender says what it should not" in site.page("/")
    assert "<b>1 of 3</b> GPUs in use" in site.page("/")


def test_before_the_first_answer_the_page_says_what_it_waits_for() -> None:
    """With status 200: the pages are up."""
    empty = Site([], [])
    empty.source._view = models.View()
    assert "the scheduler extender has not answered" in empty.page("/")


def test_a_cluster_without_gpus_says_what_to_do() -> None:
    """An empty state is a sentence."""
    bare = Site([], [])
    assert "Label GPU nodes gpu=on" in bare.page("/")
    assert "No node is like that" in bare.page("/nodes")
    assert "pods are listed once they ask for nvidia.com/gpu" in bare.page("/pods")


def test_names_from_the_cluster_are_text_whatever_they_are() -> None:
    """Markup, any script, very long ones."""
    nodes = [
        {"name": EVIL, "standing": "none", "foreign_slots": 0, "gpus": [gpu("x", 0, 100, type="“ﷺ” \u202e" * 500)]}
    ]
    site = Site(
        nodes, [pod("p" * 10_000, EVIL, ("GPU-x-0", 100), namespace=EVIL), pod("\ud83d\ude00", error_code=EVIL)]
    )
    for path in ("/", "/nodes", "/pods", f"/nodes/{EVIL.replace('/', '%2F')}"):
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
    proxied = Site(
        [], [], auth="proxy", trusted_proxies=(ipaddress.ip_network("10.1.0.0/16"),), hosts=frozenset({"gpus"})
    )

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

    def fail(found: models.View, wanted: models.Filters) -> models.Page:
        raise RuntimeError("defect")

    monkeypatch.setattr(models, "nodes", fail)
    assert "This page failed; the log says why." in site.page("/nodes", 500)


def test_five_thousand_nodes_are_paged() -> None:
    """A page is no longer for it."""
    nodes = [
        {"name": f"node-{index:04d}", "standing": "none", "foreign_slots": 0, "gpus": [gpu(f"n{index}", 0)]}
        for index in range(5000)
    ]
    site = Site(nodes, [])
    text = site.page("/nodes?page=100")
    assert "5,000 found, page 100 of 100" in text
    assert text.count('class="node"') == 50
    assert 'rel="prev" href="/nodes?page=99"' in text


@contextlib.contextmanager
def serving(answer: Callable[[], tuple[int, bytes]]) -> Iterator[str]:
    """A server that says something."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body + self.headers.get("Authorization", "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (500, b"", "the extender answers 500"), (401, b"{}", "answers 401"), (200, b"<html>", "does not answer"),
        (200, b"", "does not answer"),
    ],
)  # fmt: skip
def test_wrong_answers_of_the_extender_are_trouble_and_no_crash(status: int, body: bytes, sentence: str) -> None:
    """By its real client."""
    with serving(lambda: (status, body)) as url:
        kept = source.Source(source.Extender(url, None, None))
        kept.refresh()
    assert sentence in kept.trouble
    assert kept.view == models.View()


def test_the_token_is_read_anew_for_each_call(tmp_path: Any) -> None:
    """Kubernetes renews it on disk."""
    token = tmp_path / "token"
    with serving(lambda: (200, b'"')) as url:
        extender = source.Extender(url, None, token)
        for text in ("one", "two"):
            token.write_text(f"{text}\n")
            with contextlib.suppress(source.NoAnswer):
                assert extender.get("x") == f"Bearer {text}"
        token.unlink()
        with pytest.raises(source.NoAnswer):
            extender.get("x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bind", ":8088"], ["--bind", "10.0.0.1:8088"], ["--extender", "localhost"], ["--auth", "magic"],
        ["--threads", "0"], ["--auth", "proxy"], ["--auth", "proxy", "--trusted-proxy", "10.0.0.1/8"],
        ["--bind", ":8088", "--trusted-proxy", "10.0.0.0/8"], ["--prometheus", "localhost"],
    ],
)  # fmt: skip
def test_settings_that_would_show_the_cluster_to_everybody_are_refused(arguments: list[str]) -> None:
    """Or that make no sense."""
    with pytest.raises(errors.SettingsError):
        settings.parse(arguments, {})
    assert settings.parse([], {}).bind.port == 8088
