"""The pages over HTTP: routes, filters from the URL, headers. It reads only, and shows old data rather than none."""

import datetime
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import flask
import structlog
from werkzeug import exceptions

from gpu_sharing.core import error_codes
from webui import models, source

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_STALE_SECONDS = 30.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_LONGEST_TEXT = 200

log = structlog.get_logger("pages")


class Views:
    """The page models of the last snapshot, worked out once however many look."""

    def __init__(self, kept: source.Source) -> None:
        self._source = kept
        self._lock = threading.Lock()
        self._of: source.Snapshot | None = None
        self._view = models.View()

    def current(self) -> models.View:
        """What the pages show now."""
        snapshot = self._source.snapshot
        with self._lock:
            if snapshot is not None and snapshot is not self._of:
                self._view, self._of = models.view(snapshot), snapshot
            return self._view


def create(kept: source.Source, clock: Callable[[], float] = time.time) -> flask.Flask:
    """The application.

    Args:
        kept: Where the data comes from.
        clock: Unix seconds.
    """
    app = flask.Flask(__name__)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    views = Views(kept)

    @app.before_request
    def only_by_its_own_name() -> None:
        # A page elsewhere could name this address with a host of its own (DNS rebinding).
        host = re.sub(r":\d+$", "", flask.request.host)
        if host not in _LOCAL:
            flask.abort(400, "Use localhost, for example by kubectl port-forward.")

    @app.after_request
    def guarded(answer: flask.Response) -> flask.Response:
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if flask.request.endpoint != "static":
            answer.headers["Cache-Control"] = "no-cache"
            if answer.status_code == 200:
                answer.add_etag()
                answer.make_conditional(flask.request)
        return answer

    @app.context_processor
    def everywhere() -> dict[str, Any]:
        taken_at = views.current().taken_at
        age = clock() - taken_at if taken_at else None
        moment = datetime.datetime.fromtimestamp(taken_at, datetime.UTC) if taken_at else None
        return {
            "as_of": moment.strftime("%H:%M:%S") if moment else "",
            "as_of_full": moment.isoformat(timespec="seconds") if moment else "",
            "trouble": kept.trouble if age is None or age > _STALE_SECONDS or kept.trouble else "",
            "has_data": taken_at > 0,
            "codes": error_codes.REGISTRY,
            "hue": models.hue,
        }

    @app.get("/")
    def overview() -> str:
        return flask.render_template("overview.html", page=models.overview(views.current()))

    @app.get("/nodes")
    def nodes() -> str:
        found, wanted = views.current(), _filters()
        every = sorted({model for node in found.nodes for model in node.models})
        return flask.render_template(
            "nodes.html", page=models.nodes(found, wanted), wanted=wanted, model_names=every, sorts=models.NODE_SORTS
        )

    @app.get("/nodes/<name>")
    def node(name: str) -> str:
        found = views.current().nodes_by_name.get(name)
        if found is None:
            flask.abort(404, f"There is no node {name}.")
        return flask.render_template("node.html", node=found)

    @app.get("/pods")
    def pods() -> str:
        found, wanted = views.current(), _filters()
        namespaces = sorted({pod.namespace for pod in found.pods})
        return flask.render_template(
            "pods.html", page=models.pods(found, wanted), wanted=wanted, namespaces=namespaces, sorts=models.POD_SORTS
        )

    @app.get("/pods/<namespace>/<name>")
    def pod(namespace: str, name: str) -> str:
        found = views.current()
        one = next((pod for pod in found.pods if (pod.namespace, pod.name) == (namespace, name)), None)
        if one is None:
            flask.abort(404, f"There is no pod {namespace}/{name} that asks for GPUs.")
        told: Any = None
        trouble = ""
        if one.state == "waiting":
            try:
                told = kept.explain(namespace, name)
            except source.NoAnswer as cause:
                trouble = str(cause)
        held = [
            (node, gpu, part)
            for node in found.nodes if node.name == one.node
            for gpu in node.gpus
            for part in gpu.slices if part.pod == one.key
        ]  # fmt: skip
        return flask.render_template("pod.html", pod=one, held=held, told=told, told_trouble=trouble)

    @app.get("/api/v1/overview")
    def api_overview() -> flask.Response:
        return flask.jsonify(models.overview(views.current()))

    @app.get("/api/v1/nodes")
    def api_nodes() -> flask.Response:
        return flask.jsonify(models.nodes(views.current(), _filters()))

    @app.get("/api/v1/pods")
    def api_pods() -> flask.Response:
        return flask.jsonify(models.pods(views.current(), _filters()))

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


def _filters() -> models.Filters:
    """What the URL asks for.

    Raises:
        BadRequest: A value that makes no sense.
    """
    given = flask.request.args

    def number(name: str, default: int) -> int:
        text = given.get(name, "").strip()
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            flask.abort(400, f"{name} must be a whole number, not {text[:20]!r}.")
        return int(text)

    return models.Filters(
        text=given.get("q", "")[:_LONGEST_TEXT].strip(),
        model=given.get("model", "")[:_LONGEST_TEXT],
        state=given.get("state", "")[:_LONGEST_TEXT],
        namespace=given.get("namespace", "")[:_LONGEST_TEXT],
        free_mib=number("free", 0),
        sort=given.get("sort", "")[:_LONGEST_TEXT],
        page=number("page", 1),
    )
