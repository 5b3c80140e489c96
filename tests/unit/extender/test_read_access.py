"""Who may read the read API off loopback, and whose pods it then names."""

import asyncio
import json
from typing import Any

import pytest

from gpu_sharing.adapters import access_reviews
from gpu_sharing.core import errors
from lab import gpus
from scheduler_extender.serve import read_access, read_api
from tests.support.extender_world import A100, World, held, pod

READ, LIST_ALL = ("hami.io", "gpus", "get", ""), ("hami.io", "pods", "list", "")


class Cluster:
    """An API server that answers reviews.

    Attributes:
        users: User names by token.
        rules: What each user may do, as group, resource, verb and namespace.
        asked: The kind of each review.
    """

    def __init__(self) -> None:
        self.users = {f"token-{name}": name for name in ("bare", "ada", "webui", "operator", "dev")}
        self.rules = {
            "bare": set[Any](),
            "ada": {READ, ("", "pods", "list", "ai")},
            "webui": {READ, LIST_ALL},
            "operator": {READ, ("", "pods", "list", "")},
            "dev": {READ, ("hami.io", "profiles", "get", "")},
        }
        self.asked: list[str] = []
        self.is_away = False

    async def review(self, path: str, body: bytes, timeout_seconds: float) -> bytes:
        if self.is_away:
            raise errors.Unavailable("connection refused")
        self.asked.append(path.rpartition("/")[2])
        spec = json.loads(body)["spec"]
        if path.endswith("/tokenreviews"):
            user = self.users.get(spec["token"], "")
            return json.dumps({"status": {"authenticated": bool(user), "user": {"username": user}}}).encode()
        wanted = spec["resourceAttributes"]
        rule = (wanted.get("group", ""), wanted["resource"], wanted["verb"], wanted.get("namespace", ""))
        return json.dumps({"status": {"allowed": rule in self.rules[spec["user"]]}}).encode()


class Site:
    """The read API of a cluster with pods in two namespaces."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.ticks = 0.0
        world = World(gpus.gpu_node("a", A100, 1))
        for namespace, name in (("ai", "mine"), ("secret", "theirs")):
            body = held(name, "a", 0, 6_000)
            body["metadata"]["namespace"] = namespace
            world.see(body)
        pending = pod("waits", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "11000"})
        pending["metadata"]["namespace"] = "ai"
        world.see(pending)
        client: Any = self.cluster
        gate = read_access.TokenGate(client, lambda: self.ticks)
        self._app = read_api.ReadApi(world.core, self._events, gate, lambda: True)

    async def _events(self, namespace: str, uid: str) -> list[Any]:
        return [{"note": f"of {namespace}"}]

    def get(self, path: str, token: str = "") -> tuple[int, Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        scope = {
            "type": "http", "method": "GET", "headers": headers, "raw_path": path.encode(), "path": path,
        }  # fmt: skip
        asyncio.run(self._app(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])


def pods(answer: Any) -> list[str]:
    return [f"{one['namespace']}/{one['name']}" for one in answer["pods"]]


def test_a_profile_needs_a_rule_of_its_own_and_shows_places_in_code() -> None:
    """It costs CPU of the process that decides, so that readers of the pages may not take one."""
    site = Site()

    refused, answer = site.get("/api/v1/profile/1", "token-webui")
    permitted, profile = site.get("/api/v1/profile/1", "token-dev")

    assert (refused, "profiles.hami.io" in answer["message"]) == (403, True)
    assert permitted == 200
    assert profile["samples"] > 0
    assert any("profiling" not in one["frames"] and ".py:" in one["frames"] for one in profile["stacks"])
    assert any("ReadApi" in one or "profil" in one for one in profile["tasks"])


@pytest.mark.parametrize("seconds", ["0", "x", "-1", "1.5", "100", "²"])
def test_a_profile_of_no_number_of_seconds_is_an_unknown_path(seconds: str) -> None:
    """One or two digits; more than a minute is a minute."""
    assert read_api.route_of(f"/api/v1/profile/{seconds}".encode()) is None
    assert read_api.route_of(b"/api/v1/profile/99") == read_api.Route("profile", seconds=60.0)


@pytest.mark.parametrize("path", ["cluster", "nodes", "pods", "explain/ai/waits", "events/ai/mine", "openapi.json"])
def test_an_account_without_a_rule_reads_nothing(path: str) -> None:
    """Kubernetes lets every authenticated account get `/api/*`, so that no permission under it guards anything."""
    site = Site()
    status, answer = site.get(f"/api/v1/{path}", "token-bare")

    assert (status, answer["error_code"]) == (403, "SCHED_READ_FORBIDDEN")
    assert "bare may not get gpus.hami.io" in answer["message"]
    assert "hami-reader" in answer["message"]


@pytest.mark.parametrize(
    "path", ["/api%2Fv1%2Fcluster/x/pods", "/api/v1/../v1/pods", "/api/v1//pods", "/api/v1/pods%00"]
)
@pytest.mark.parametrize(("token", "status"), [("token-bare", 403), ("token-ada", 404)])
def test_no_spelling_of_a_path_gets_past_the_gate(path: str, token: str, status: int) -> None:
    """The gate judged one reading of the path, the router served another."""
    assert Site().get(path, token)[0] == status


def test_a_path_is_decoded_once() -> None:
    """Names may be percent-encoded, and an encoded percent sign is no second chance."""
    assert read_api.route_of(b"/api/v1/explain/a%69/wai%74s?x=1") == read_api.Route("explain", "ai", "waits")
    assert read_api.route_of(b"/api/v1/p%6Fds") == read_api.Route("pods")
    assert read_api.route_of(b"/api/v1/explain/ai/a%252Fb") == read_api.Route("explain", "ai", "a%2Fb")
    assert read_api.route_of(b"/api/v1/explain/ai/%ff") is None
    assert read_api.route_of(b"/api/v1/explain/ai/" + b"x" * 254) is None


def test_pods_are_named_only_of_namespaces_whose_pods_the_caller_may_list() -> None:
    site = Site()

    assert pods(site.get("/api/v1/pods", "token-ada")[1]) == ["ai/mine", "ai/waits"]
    assert site.get("/api/v1/events/ai/mine", "token-ada")[1]["events"] == [{"note": "of ai"}]
    for path in ("explain/secret/theirs", "events/secret/theirs", "explain/secret/absent", "events/nowhere/x"):
        status, answer = site.get(f"/api/v1/{path}", "token-ada")
        assert (status, answer["error_code"]) == (403, "SCHED_READ_FORBIDDEN")
        assert "ada may not list pods in namespace" in answer["message"]
    assert site.get("/api/v1/cluster", "token-ada")[0] == 200
    for token in ("token-webui", "token-operator"):
        assert pods(site.get("/api/v1/pods", token)[1]) == ["ai/mine", "ai/waits", "secret/theirs"]


def test_an_explanation_names_no_pod_of_another_namespace() -> None:
    """Whose end a pod waits for may be another tenant's business."""
    site = Site()
    told = site.get("/api/v1/explain/ai/waits", "token-ada")[1]
    whole = site.get("/api/v1/explain/ai/waits", "token-webui")[1]

    assert whole["nodes"][0]["waits_for"] == ["ai/mine", "secret/theirs"]
    assert told["nodes"][0]["waits_for"] == ["ai/mine", "1 of other namespaces"]


def test_a_reader_of_no_namespace_is_told_so_and_not_shown_an_empty_list() -> None:
    """An empty list would read as an empty cluster."""
    site = Site()
    site.cluster.rules["bare"].add(READ)

    status, answer = site.get("/api/v1/pods", "token-bare")

    assert (status, answer["error_code"]) == (403, "SCHED_READ_FORBIDDEN")
    assert "any namespace that has pods with GPUs" in answer["message"]


@pytest.mark.parametrize("token", ["", "short", "with space-and-more", "ünïcödë-token", "x" * 17_000, "a\x00b-token-x"])
def test_what_is_no_token_costs_the_api_server_nothing(token: str) -> None:
    """Anybody can send it, as often as they like."""
    site = Site()

    assert site.get("/api/v1/cluster", token)[0] == 401
    assert site.cluster.asked == []


def test_answers_are_remembered_for_half_a_minute_and_a_flood_of_unknown_tokens_takes_none_away() -> None:
    """Each review costs the API server a call, and the WebUI's token must not be asked about again and again."""
    site = Site()
    site.get("/api/v1/pods", "token-webui")
    for number in range(1_100):
        assert site.get("/api/v1/cluster", f"invented-{number}")[0] == 401
    asked = len(site.cluster.asked)

    assert site.get("/api/v1/pods", "token-webui")[0] == 200
    assert len(site.cluster.asked) == asked
    site.cluster.rules["webui"].clear()
    site.ticks = 31.0
    assert site.get("/api/v1/pods", "token-webui")[0] == 403


def test_an_api_server_that_does_not_answer_opens_nothing() -> None:
    """And the caller is not told that the token is wrong."""
    site = Site()
    site.cluster.is_away = True

    status, answer = site.get("/api/v1/pods", "token-ada")

    assert (status, answer["error_code"]) == (503, "SCHED_REVIEW_FAILED")


def test_tokens_of_kubernetes_have_the_form_of_a_token() -> None:
    """A service account's, a bootstrap token, a static one, and one in base64."""
    for token in (
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln-_natur",
        "07401b.f395accd246ae52d",
        "a" * 32,
        "YWJjZGVmZw==",
    ):
        assert access_reviews.is_token(token)
