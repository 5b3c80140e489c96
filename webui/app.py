"""The Flask application: it joins the blueprints, and guards every request and answer.

It only reads, and shows old data rather than none.
"""

import datetime
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

import flask
import flask_wtf.csrf
import structlog
from werkzeug import exceptions
from werkzeug.wrappers import Response

from gpu_sharing.core import error_codes
from webui import access, extender_poller, views
from webui.json_api import JsonApi
from webui.pages import Pages
from webui.seen import Key, Seen, ViewCache
from webui.settings import Settings
from webui.sign_in import SignIn

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_FLASK_SETTINGS = {
    "SESSION_COOKIE_NAME": "hami-webui",
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_HTTPONLY": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
    "MAX_CONTENT_LENGTH": 64 * 1024,
    # Our own policy keeps browsers from sending the referrer that this would require.
    "WTF_CSRF_SSL_STRICT": False,
}
_OPEN_ENDPOINTS = frozenset({
    "static", "sign_in.login", "sign_in.signed_in", "sign_in.logout", "sign_in.signed_out", "api.openapi",
})  # fmt: skip
_CACHED_ENDPOINTS = frozenset({
    "pages.overview", "pages.nodes", "pages.pods", "api.overview", "api.nodes", "api.pods",
})  # fmt: skip
"""Their answers depend on the view alone; the page of a pod or of a node calls other processes."""

log = structlog.get_logger("pages")


def create(
    source: extender_poller.Source,
    settings: Settings,
    gate: access.Gate,
    sessions: access.Sessions | None = None,
    clock: Callable[[], float] = time.time,
) -> flask.Flask:
    """Return the application.

    Args:
        source: The data.
        settings: Names the hosts that may be requested.
        gate: Decides who may view what.
        sessions: Of viewers who sign in; None where nobody does.
        clock: Unix seconds.
    """
    app = flask.Flask(__name__)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["utc"] = _utc
    app.config.update(_FLASK_SETTINGS, SECRET_KEY=secrets.token_bytes(32))
    seen = Seen(source, clock)
    guard = _Guard(seen, settings, gate, sessions)
    app.before_request(guard.admit)
    # After the step above, because a form without a token is answered with a page too.
    flask_wtf.csrf.CSRFProtect(app)
    app.after_request(guard.finish)
    app.context_processor(guard.template_variables)
    app.register_blueprint(Pages(seen).blueprint())
    app.register_blueprint(JsonApi(seen).blueprint())
    if isinstance(gate, access.Reviewed) and sessions is not None:
        app.register_blueprint(SignIn(gate, sessions, seen).blueprint())
    app.register_error_handler(exceptions.HTTPException, _refused)
    app.register_error_handler(Exception, _failed)
    return app


class _Guard:
    """What happens before and after each handler: hosts, viewers, cached answers, headers."""

    def __init__(self, seen: Seen, settings: Settings, gate: access.Gate, sessions: access.Sessions | None) -> None:
        self._seen = seen
        self._settings = settings
        self._gate = gate
        self._sessions = sessions
        self._answers = ViewCache()

    def _key(self) -> Key:
        return flask.request.full_path, self._seen.problem, self._seen.meter_problem, flask.g.viewer

    def admit(self) -> Response | None:
        """Identify the viewer, and answer from the cache where that is possible."""
        flask.g.viewer = access.Viewer()
        if re.sub(r":\d+$", "", flask.request.host).lower() not in self._settings.hosts:
            flask.abort(400, "Use localhost, for example by kubectl port-forward, or a name of --hosts.")
        endpoint = flask.request.endpoint
        if endpoint in _OPEN_ENDPOINTS:
            return None
        number = flask.session.get("number", "") if self._sessions else ""
        try:
            flask.g.viewer = self._gate.viewer(flask.request, number, self._seen.whole.pods_by_namespace)
        except access.ViewRefused as refused:
            if self._may_sign_in(refused):
                return flask.redirect(flask.url_for("sign_in.login", next=flask.request.full_path.rstrip("?")))
            flask.abort(refused.status, str(refused))
        cached = self._answers.get(self._seen.whole, self._key()) if endpoint in _CACHED_ENDPOINTS else None
        return flask.Response(cached[0], content_type=cached[1]) if cached else None

    def _may_sign_in(self, refused: access.ViewRefused) -> bool:
        request = flask.request
        return (
            self._sessions is not None
            and refused.status == 401
            and request.method == "GET"
            and not request.path.startswith("/api/")
            and not request.headers.get("HX-Request")
        )

    def finish(self, answer: flask.Response) -> flask.Response:
        """Set the headers of an answer, and cache it where that is possible."""
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if flask.request.endpoint != "static":
            answer.headers["Cache-Control"] = "private, no-cache"
            if answer.status_code == 200 and flask.request.method == "GET":
                if flask.request.endpoint in _CACHED_ENDPOINTS:
                    kept = answer.get_data(), answer.content_type or ""
                    self._answers.put(self._seen.whole, self._key(), kept)
                answer.add_etag()
                answer.make_conditional(flask.request)
        return answer

    def template_variables(self) -> dict[str, Any]:
        """Return what every template may use."""
        taken_at = self._seen.whole.taken_at
        return {
            "as_of": _utc(taken_at)[11:19] if taken_at else "",
            "as_of_full": _utc(taken_at),
            "taken_at": taken_at,
            "problem": self._seen.problem,
            "has_data": taken_at > 0,
            "codes": error_codes.REGISTRY,
            "hue": views.hue,
            "user": flask.g.viewer.name,
            "only": flask.g.viewer.namespaces,
            "signs_in": self._sessions is not None,
            "why_unknown": self._seen.meter_problem,
        }


def _refused(cause: exceptions.HTTPException) -> tuple[Any, int]:
    status = cause.code or 500
    if flask.request.path.startswith("/api/"):
        return flask.jsonify({"message": cause.description, "status": status}), status
    return flask.render_template("error.html", status=status, message=cause.description), status


def _failed(cause: Exception) -> tuple[Any, int]:
    log.error("defect", error_code=error_codes.INTERNAL, path=flask.request.path, exc_info=cause)
    return flask.render_template("error.html", status=500, message="This page failed; see the log of the WebUI."), 500


def _utc(moment: float) -> str:
    """Return Unix seconds as a date and time in UTC."""
    try:
        return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "at no time"
