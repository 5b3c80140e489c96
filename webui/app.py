"""The pages over HTTP: routes, filters from the URL, headers. It reads only, and shows old data rather than none."""

import datetime
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import flask
import flask_wtf.csrf
import msgspec
import structlog
from werkzeug import exceptions
from werkzeug.wrappers import Response

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import error_codes
from webui import access, extender_poller, history, lists, meters, models, node_heatmap, openapi, views
from webui.settings import Settings

_STALE_SECONDS = 30.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_LONGEST_TEXT = 200
_LONGEST_NAME = 600
_LONGEST_BODY = 64 * 1024
_MOST_KEPT = 200
_MOST_EVENTS = 12
_FEW_NODES = 24
"""So many are shown on the overview GPU by GPU; of more, one cell a node."""
_OPEN_ENDPOINTS = frozenset({"static", "login", "signed_in", "logout", "signed_out", "api_openapi"})
_KEPT_ENDPOINTS = frozenset({"overview", "nodes", "pods", "api_overview", "api_nodes", "api_pods"})
"""Those that show nothing but the view; the page of a pod or of a node asks others."""

log = structlog.get_logger("pages")
Key = tuple[object, ...]


class Kept:
    """What was made of one view, for all who look at the same: viewers poll, and the cluster is as it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: models.View | None = None
        self._made: dict[Key, Any] = {}

    def get(self, view: models.View, key: Key) -> Any:
        """What was made of that view; None where it was not."""
        with self._lock:
            return self._made.get(key) if self._of is view else None

    def put(self, view: models.View, key: Key, made: Any) -> None:
        """Keep something."""
        with self._lock:
            if self._of is not view or len(self._made) >= _MOST_KEPT:
                self._of, self._made = view, {}
            self._made[key] = made


def create(
    kept: extender_poller.Source,
    settings: Settings,
    gate: access.Gate,
    sessions: access.Sessions | None = None,
    clock: Callable[[], float] = time.time,
) -> flask.Flask:
    """The application.

    Args:
        kept: Where the data comes from.
        settings: By which names it may be asked for.
        gate: Who may look.
        sessions: Of those who sign in; None where nobody does.
        clock: Unix seconds.
    """
    app = flask.Flask(__name__)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["utc"] = _utc
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),
        SESSION_COOKIE_NAME="hami-webui",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=_LONGEST_BODY,
        # Our own policy keeps browsers from sending the referrer that this would ask for.
        WTF_CSRF_SSL_STRICT=False,
    )
    pages, seen = Kept(), Kept()

    def whole_view() -> models.View:
        """The one view that a request is answered from."""
        found: models.View = flask.g.setdefault("whole_view", kept.view)
        return found

    def view_now() -> models.View:
        """As much of it as the viewer may see."""
        whole, namespaces = whole_view(), flask.g.viewer.namespaces
        found: models.View | None = seen.get(whole, (namespaces,))
        if found is None:
            found = views.seen_by(whole, namespaces)
            seen.put(whole, (namespaces,), found)
        return found

    def trouble_now() -> str:
        # Asked once a request: a page is kept under the trouble that stands on it.
        taken_at = whole_view().taken_at
        old = "it is old" if taken_at and clock() - taken_at > _STALE_SECONDS else ""
        found: str = flask.g.setdefault("trouble", kept.trouble or old)
        return found

    def meter_trouble_now() -> str:
        found: str = flask.g.setdefault("meter_trouble", kept.meter_trouble)
        return found

    def page_key() -> Key:
        return flask.request.full_path, trouble_now(), meter_trouble_now(), flask.g.viewer

    @app.before_request
    def only_whom_and_as_one_may() -> Response | None:
        flask.g.viewer = access.Viewer()
        if re.sub(r":\d+$", "", flask.request.host).lower() not in settings.hosts:
            flask.abort(400, "Use localhost, for example by kubectl port-forward, or a name of --hosts.")
        if flask.request.endpoint in _OPEN_ENDPOINTS:
            return None
        number = flask.session.get("number", "") if sessions else ""
        try:
            flask.g.viewer = gate.viewer(flask.request, number, whole_view().pods_by_namespace)
        except access.Refused as refused:
            may_sign_in = sessions is not None and refused.status == 401 and flask.request.method == "GET"
            if (
                may_sign_in
                and not flask.request.path.startswith("/api/")
                and not flask.request.headers.get("HX-Request")
            ):
                return flask.redirect(flask.url_for("login", next=flask.request.full_path.rstrip("?")))
            flask.abort(refused.status, str(refused))
        found = pages.get(whole_view(), page_key()) if flask.request.endpoint in _KEPT_ENDPOINTS else None
        return flask.Response(found[0], content_type=found[1]) if found else None

    # After the step above, because a form from nowhere is answered with a page too.
    flask_wtf.csrf.CSRFProtect(app)

    @app.after_request
    def guarded(answer: flask.Response) -> flask.Response:
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if flask.request.endpoint != "static":
            answer.headers["Cache-Control"] = "private, no-cache"
            if answer.status_code == 200 and flask.request.method == "GET":
                if flask.request.endpoint in _KEPT_ENDPOINTS:
                    pages.put(whole_view(), page_key(), (answer.get_data(), answer.content_type or ""))
                answer.add_etag()
                answer.make_conditional(flask.request)
        return answer

    @app.context_processor
    def everywhere() -> dict[str, Any]:
        taken_at = whole_view().taken_at
        return {
            "as_of": _utc(taken_at)[11:19] if taken_at else "",
            "as_of_full": _utc(taken_at),
            "taken_at": taken_at,
            "trouble": trouble_now(),
            "has_data": taken_at > 0,
            "codes": error_codes.REGISTRY,
            "hue": views.hue,
            "user": flask.g.viewer.name,
            "only": flask.g.viewer.namespaces,
            "signs_in": sessions is not None,
            "why_unknown": meter_trouble_now(),
        }

    def refuse_before_first_data() -> None:
        """Abort with 503: that something does not exist is not known before the first snapshot."""
        if not whole_view().taken_at:
            flask.abort(503, f"There is no data yet: {trouble_now()}.")

    def node_now(name: str) -> tuple[models.Node, str]:
        found, why = kept.node(name)
        if found is None:
            refuse_before_first_data()
            flask.abort(404, f"There is no node {name}.")
        return views.shown(view_now(), found), why

    def pod_now(namespace: str, name: str) -> models.Pod:
        found = view_now().pods_by_key.get(f"{namespace}/{name}")
        if found is None:
            refuse_before_first_data()
            flask.abort(404, f"There is no pod {namespace}/{name} that requests GPUs, or you may not see it.")
        return found

    def changes_now() -> list[models.Change]:
        visible = flask.g.viewer.namespaces
        return [
            change
            for change in kept.changes
            if visible is None or not change.pod or views.namespace_of(change.pod) in visible
        ]

    @app.get("/")
    def overview() -> str:
        found = view_now()
        few = len(found.nodes) <= _FEW_NODES
        return flask.render_template(
            "overview.html",
            page=found.overview,
            nodes=[views.shown(found, node) for node in found.nodes] if few else [],
            heatmap=() if few else node_heatmap.groups(found.nodes),
            columns=node_heatmap.COLUMNS * node_heatmap.CELL,
            cell=node_heatmap.CELL,
            changes=changes_now()[:_MOST_EVENTS],
            measured_at=found.measured_at,
            series=kept.history.series(),
            windows=history.WINDOWS if kept.has_prometheus else (),
        )

    @app.get("/nodes")
    def nodes() -> str:
        found, wanted = view_now(), _filters()
        return flask.render_template(
            "nodes.html",
            page=lists.nodes(found, wanted),
            wanted=wanted,
            model_names=found.model_names,
            levels=models.LEVELS,
            states=models.GPU_STATES,
            sorts=lists.NODE_SORTS,
        )

    @app.get("/nodes/<name>")
    def node(name: str) -> str:
        found, why = node_now(name)
        return flask.render_template(
            "node.html",
            node=found,
            why_unknown=why,
            series=kept.history.series(name),
            windows=history.WINDOWS if kept.has_prometheus else (),
        )

    @app.get("/pods")
    def pods() -> str:
        found, wanted = view_now(), _filters()
        return flask.render_template(
            "pods.html",
            page=lists.pods(found, wanted),
            wanted=wanted,
            namespaces=found.namespaces,
            states=models.POD_STATES,
            sorts=lists.POD_SORTS,
        )

    @app.get("/pods/<namespace>/<name>")
    def pod(namespace: str, name: str) -> str:
        one = pod_now(namespace, name)
        explanation: Any = None
        explanation_error = events_error = why = ""
        events: Any = ()
        try:
            if one.state == "pending":
                explanation = _explained(kept.explain(namespace, name), flask.g.viewer.namespaces)
        except extender_poller.NoAnswer as cause:
            explanation_error = str(cause)
        try:
            events = kept.events(namespace, name)
        except extender_poller.NoAnswer as cause:
            events_error = str(cause)
        node, why = kept.node(one.node) if one.node else (None, "")
        held = [(gpu, part) for gpu in (node.gpus if node else ()) for part in gpu.slices if part.pod == one.key]
        return flask.render_template(
            "pod.html", pod=one, held=held, explanation=explanation, explanation_error=explanation_error, events=events,
            events_error=events_error, why_unknown=why, windows=history.WINDOWS if kept.has_prometheus else (),
        )  # fmt: skip

    @app.get("/search")
    def search() -> str | Response:
        text = _filters().text
        named_nodes, named_pods = lists.search(view_now(), text)
        found = [
            *(flask.url_for("node", name=one.name) for one in named_nodes.items),
            *(flask.url_for("pod", namespace=one.namespace, name=one.name) for one in named_pods.items),
        ]
        if text and len(found) == 1:
            return flask.redirect(found[0])
        return flask.render_template("search.html", text=text, nodes=named_nodes, pods=named_pods)

    if isinstance(gate, access.Reviewed) and sessions is not None:
        _add_sign_in(app, gate, sessions, lambda: whole_view().pods_by_namespace)

    def as_json(value: Any) -> flask.Response:
        return flask.Response(msgspec.json.encode(value), content_type="application/json")

    @app.get("/api/v1/openapi.json")
    def api_openapi() -> flask.Response:
        return as_json(openapi.document())

    @app.get("/api/v1/overview")
    def api_overview() -> flask.Response:
        return as_json(view_now().overview or flask.abort(503, "Nothing has been read yet."))

    @app.get("/api/v1/nodes")
    def api_nodes() -> flask.Response:
        return as_json(lists.nodes(view_now(), _filters()))

    @app.get("/api/v1/nodes/<name>")
    def api_node(name: str) -> flask.Response:
        return as_json(node_now(name)[0])

    @app.get("/api/v1/pods")
    def api_pods() -> flask.Response:
        return as_json(lists.pods(view_now(), _filters()))

    @app.get("/api/v1/pods/<namespace>/<name>")
    def api_pod(namespace: str, name: str) -> flask.Response:
        return as_json(pod_now(namespace, name))

    @app.get("/api/v1/changes")
    def api_changes() -> flask.Response:
        return as_json(changes_now())

    @app.get("/api/v1/history")
    def api_history() -> flask.Response:
        window = flask.request.args.get("window", "1h")
        if window not in history.WINDOWS:
            flask.abort(400, f"window must be one of {', '.join(history.WINDOWS)}.")
        node, pod = (flask.request.args.get(name, "")[:_LONGEST_NAME] for name in ("node", "pod"))
        if pod:
            pod_now(*pod.split("/", 1)) if "/" in pod else flask.abort(400, "pod must be NAMESPACE/NAME.")
        try:
            return as_json(kept.series(node, pod, history.WINDOWS[window]))
        except meters.NoAnswer as cause:
            flask.abort(503, str(cause))

    @app.errorhandler(exceptions.HTTPException)
    def refused(cause: exceptions.HTTPException) -> tuple[Any, int]:
        status = cause.code or 500
        if flask.request.path.startswith("/api/"):
            return flask.jsonify({"message": cause.description, "status": status}), status
        return flask.render_template("error.html", status=status, message=cause.description), status

    @app.errorhandler(Exception)
    def broken(cause: Exception) -> tuple[Any, int]:
        log.error("defect", error_code=error_codes.INTERNAL, path=flask.request.path, exc_info=cause)
        return flask.render_template("error.html", status=500, message="This page failed; the log says why."), 500

    return app


def _add_sign_in(
    app: flask.Flask, gate: access.Reviewed, sessions: access.Sessions, namespaces: Callable[[], Any]
) -> None:
    """The pages on which one says who one is, and that one goes."""

    def form(trouble: str = "") -> str:
        return flask.render_template("login.html", trouble=trouble, next=_inside(flask.request.values.get("next", "")))

    @app.get("/login")
    def login() -> str:
        return form()

    @app.post("/login", endpoint="signed_in")
    def signed_in() -> Response | tuple[str, int]:
        token = flask.request.form.get("token", "").strip()
        try:
            viewer = gate.bearer(token, namespaces())
        except access.Refused as refused:
            log.info("sign-in refused", status=refused.status, cause=str(refused))
            return form(str(refused)), refused.status
        flask.session.clear()
        flask.session["number"] = sessions.begin(token)
        log.info("signed in", user=viewer.name)
        return flask.redirect(_inside(flask.request.form.get("next", "")), 303)

    @app.get("/logout")
    def logout() -> str:
        return flask.render_template("logout.html")

    @app.post("/logout", endpoint="signed_out")
    def signed_out() -> Response:
        sessions.end(flask.session.get("number", ""))
        flask.session.clear()
        return flask.redirect(flask.url_for("login"), 303)


def _utc(moment: float) -> str:
    """Unix seconds for people and machines."""
    try:
        return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "at no time"


def _inside(path: str) -> str:
    """A path of ours, whatever was asked for."""
    return path if re.fullmatch(r"/(?![/\\])[^\s\\]*", path) else "/"


def _explained(explanation: read_api_types.Explanation, visible: frozenset[str] | None) -> read_api_types.Explanation:
    """An explanation without the names of pods that the viewer may not see."""
    if visible is None:
        return explanation

    def named(keys: list[str]) -> list[str]:
        hidden = sum(views.namespace_of(key) not in visible for key in keys)
        rest = [f"{hidden} of other namespaces"] if hidden else []
        return [*(key for key in keys if views.namespace_of(key) in visible), *rest]

    nodes = [
        msgspec.structs.replace(node, waits_for=named(node.waits_for), evictable=named(node.evictable))
        for node in explanation.nodes
    ]
    return msgspec.structs.replace(explanation, nodes=nodes)


def _filters() -> models.Filters:
    """What the URL asks for.

    Raises:
        BadRequest: A value that makes no sense.
    """
    given = flask.request.args
    chosen: dict[str, Any] = {}
    for name, field in models.PARAMETERS.items():
        text = given.get(name, "").strip()[:_LONGEST_TEXT]
        if name in ("free", "page"):
            if text and (not text.isascii() or not text.isdigit() or len(text) > 9):
                flask.abort(400, f"{name} must be a whole number, not {text[:20]!r}.")
            if text:
                chosen[field] = int(text)
        else:
            chosen[field] = text
    return models.Filters(**chosen)
