"""Signing in with a token of the cluster, and out again."""

import re

import flask
import structlog
from werkzeug.wrappers import Response

from webui import access
from webui.seen import Seen

log = structlog.get_logger("pages")


class SignIn:
    """The handlers of the two forms."""

    def __init__(self, gate: access.Reviewed, sessions: access.Sessions, seen: Seen) -> None:
        self._gate = gate
        self._sessions = sessions
        self._seen = seen

    def blueprint(self) -> flask.Blueprint:
        """Return the routes of the two forms."""
        routes = flask.Blueprint("sign_in", __name__)
        routes.add_url_rule("/login", "login", self.login)
        routes.add_url_rule("/login", "signed_in", self.signed_in, methods=["POST"])
        routes.add_url_rule("/logout", "logout", self.logout)
        routes.add_url_rule("/logout", "signed_out", self.signed_out, methods=["POST"])
        return routes

    def login(self) -> str:
        """Show the form for a token."""
        return _form()

    def signed_in(self) -> Response | tuple[str, int]:
        """Begin a session with a token, or show the form again."""
        token = flask.request.form.get("token", "").strip()
        try:
            viewer = self._gate.bearer(token, self._seen.whole.pods_by_namespace)
        except access.ViewRefused as refused:
            log.info("sign-in refused", status=refused.status, cause=str(refused))
            return _form(str(refused)), refused.status
        flask.session.clear()
        flask.session["number"] = self._sessions.begin(token)
        log.info("signed in", user=viewer.name)
        return flask.redirect(local_path(flask.request.form.get("next", "")), 303)

    def logout(self) -> str:
        """Show the form that ends the session."""
        return flask.render_template("logout.html")

    def signed_out(self) -> Response:
        """End the session and show the sign-in form."""
        self._sessions.end(flask.session.get("number", ""))
        flask.session.clear()
        return flask.redirect(flask.url_for("sign_in.login"), 303)


def _form(problem: str = "") -> str:
    path = local_path(flask.request.values.get("next", ""))
    return flask.render_template("login.html", sign_in_problem=problem, next=path)


def local_path(path: str) -> str:
    """Return a path of this site: the given one, or `/` where it could lead elsewhere."""
    return path if re.fullmatch(r"/(?![/\\])[^\s\\]*", path) else "/"
