"""The pages over HTTP: routes, filters from the URL, headers. It reads only, and shows old data rather than none."""

import datetime
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import flask
import structlog
from werkzeug import exceptions

from gpu_sharing.core import error_codes
from webui import models, settings, source

_STALE_SECONDS = 30.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_LONGEST_TEXT = 200
_MOST_KEPT = 200
_KEPT_PAGES = frozenset({"overview", "nodes", "node", "pods", "api_overview", "api_nodes", "api_pods"})
"""Those that show nothing but the view; a pod's page asks the extender."""

log = structlog.get_logger("pages")


class Kept:
    """Pages as they were made of one view, for all who look at the same: viewers poll, and the cluster is as it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: models.View | None = None
        self._pages: dict[tuple[str, ...], tuple[bytes, str]] = {}

    def get(self, view: models.View, key: tuple[str, ...]) -> tuple[bytes, str] | None:
        """The body and content type of a page of that view."""
        with self._lock:
            return self._pages.get(key) if self._of is view else None

    def put(self, view: models.View, key: tuple[str, ...], page: tuple[bytes, str]) -> None:
        """Keep a page."""
        with self._lock:
            if self._of is not view or len(self._pages) >= _MOST_KEPT:
                self._of, self._pages = view, {}
            self._pages[key] = page


def create(kept: source.Source, options: settings.Settings, clock: Callable[[], float] = time.time) -> flask.Flask:
    """The application.

    Args:
        kept: Where the data comes from.
        options: Who may look, and by which names.
        clock: Unix seconds.
    """
    app = flask.Flask(__name__)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    pages = Kept()

    def view_now() -> models.View:
        """The one view that a request is answered from."""
        found: models.View = flask.g.setdefault("view", kept.view)
        return found

    def trouble_now() -> str:
        # Asked once a request: a page is kept under the trouble that stands on it.
        taken_at = view_now().taken_at
        old = "it is old" if taken_at and clock() - taken_at > _STALE_SECONDS else ""
        found: str = flask.g.setdefault("trouble", kept.trouble or old)
        return found

    def page_key() -> tuple[str, ...]:
        return flask.request.full_path, trouble_now(), flask.g.user

    @app.before_request
    def only_whom_and_as_one_may() -> flask.Response | None:
        if re.sub(r":\d+$", "", flask.request.host).lower() not in options.hosts:
            flask.abort(400, "Use localhost, for example by kubectl port-forward, or a name of --hosts.")
        flask.g.user = "" if options.auth == "none" else named_by_proxy()
        found = pages.get(view_now(), page_key()) if flask.request.endpoint in _KEPT_PAGES else None
        return flask.Response(found[0], content_type=found[1]) if found else None

    def named_by_proxy() -> str:
        if not _comes_from(flask.request.remote_addr, options.trusted_proxies):
            flask.abort(403, "Come by the proxy that says who you are.")
        user: str = flask.request.headers.get(options.user_header, "")
        if not user:
            flask.abort(401, f"The proxy did not say who you are in {options.user_header}.")
        return user

    @app.after_request
    def guarded(answer: flask.Response) -> flask.Response:
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if flask.request.endpoint != "static":
            answer.headers["Cache-Control"] = "no-cache"
            if answer.status_code == 200:
                if flask.request.endpoint in _KEPT_PAGES:
                    pages.put(view_now(), page_key(), (answer.get_data(), answer.content_type or ""))
                answer.add_etag()
                answer.make_conditional(flask.request)
        return answer

    @app.context_processor
    def everywhere() -> dict[str, Any]:
        taken_at = view_now().taken_at
        moment = datetime.datetime.fromtimestamp(taken_at, datetime.UTC) if taken_at else None
        return {
            "as_of": moment.strftime("%H:%M:%S") if moment else "",
            "as_of_full": moment.isoformat(timespec="seconds") if moment else "",
            "trouble": trouble_now(),
            "has_data": taken_at > 0,
            "codes": error_codes.REGISTRY,
            "hue": models.hue,
            "user": flask.g.get("user", ""),
        }

    @app.get("/")
    def overview() -> str:
        return flask.render_template("overview.html", page=view_now().overview)

    @app.get("/nodes")
    def nodes() -> str:
        found, wanted = view_now(), _filters()
        return flask.render_template(
            "nodes.html",
            page=models.nodes(found, wanted),
            wanted=wanted,
            model_names=found.model_names,
            sorts=models.NODE_SORTS,
        )

    @app.get("/nodes/<name>")
    def node(name: str) -> str:
        found = view_now().nodes_by_name.get(name)
        if found is None:
            flask.abort(404, f"There is no node {name}.")
        return flask.render_template("node.html", node=found)

    @app.get("/pods")
    def pods() -> str:
        found, wanted = view_now(), _filters()
        return flask.render_template(
            "pods.html",
            page=models.pods(found, wanted),
            wanted=wanted,
            namespaces=found.namespaces,
            sorts=models.POD_SORTS,
        )

    @app.get("/pods/<namespace>/<name>")
    def pod(namespace: str, name: str) -> str:
        found = view_now()
        one = found.pods_by_key.get(f"{namespace}/{name}")
        if one is None:
            flask.abort(404, f"There is no pod {namespace}/{name} that asks for GPUs.")
        told: Any = None
        trouble = ""
        if one.state == "waiting":
            try:
                told = kept.explain(namespace, name)
            except source.NoAnswer as cause:
                trouble = str(cause)
        node = found.nodes_by_name.get(one.node)
        held = [(gpu, part) for gpu in (node.gpus if node else ()) for part in gpu.slices if part.pod == one.key]
        return flask.render_template("pod.html", pod=one, held=held, told=told, told_trouble=trouble)

    @app.get("/api/v1/overview")
    def api_overview() -> flask.Response:
        return flask.jsonify(view_now().overview or {})

    @app.get("/api/v1/nodes")
    def api_nodes() -> flask.Response:
        return flask.jsonify(models.nodes(view_now(), _filters()))

    @app.get("/api/v1/pods")
    def api_pods() -> flask.Response:
        return flask.jsonify(models.pods(view_now(), _filters()))

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


def _comes_from(address: str | None, networks: Iterable[settings.Network]) -> bool:
    """Whether a connection comes from one of some networks; an IPv4 address may come as one of IPv6."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None) or found
    return any(mapped in network for network in networks)


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
