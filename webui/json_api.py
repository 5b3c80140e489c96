"""The JSON API: the page models as they are."""

from typing import Any

import flask
import msgspec

from webui import filters, history, lists, meters, openapi
from webui.seen import Seen

_LONGEST_NAME = 600


class JsonApi:
    """The handlers under `/api/v1`."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def blueprint(self) -> flask.Blueprint:
        """Return the routes under `/api/v1`."""
        routes = flask.Blueprint("api", __name__, url_prefix="/api/v1")
        routes.add_url_rule("/openapi.json", "openapi", self.openapi)
        routes.add_url_rule("/overview", view_func=self.overview)
        routes.add_url_rule("/nodes", view_func=self.nodes)
        routes.add_url_rule("/nodes/<name>", view_func=self.node)
        routes.add_url_rule("/pods", view_func=self.pods)
        routes.add_url_rule("/pods/<namespace>/<name>", view_func=self.pod)
        routes.add_url_rule("/changes", view_func=self.changes)
        routes.add_url_rule("/history", view_func=self.history)
        return routes

    def openapi(self) -> flask.Response:
        """Answer the description of this API."""
        return _json(openapi.document())

    def overview(self) -> flask.Response:
        """Answer the model of the overview."""
        return _json(self._seen.view.overview or flask.abort(503, "Nothing has been read yet."))

    def nodes(self) -> flask.Response:
        """Answer a filtered page of nodes."""
        return _json(lists.nodes(self._seen.view, filters.from_url()))

    def node(self, name: str) -> flask.Response:
        """Answer one node and its GPUs."""
        return _json(self._seen.node(name)[0])

    def pods(self) -> flask.Response:
        """Answer a filtered page of pods."""
        return _json(lists.pods(self._seen.view, filters.from_url()))

    def pod(self, namespace: str, name: str) -> flask.Response:
        """Answer one pod with GPUs, or a pending one."""
        return _json(self._seen.pod(namespace, name))

    def changes(self) -> flask.Response:
        """Answer the latest changes, newest first."""
        return _json(self._seen.changes())

    def history(self) -> flask.Response:
        """Answer memory over time of the cluster, a node or a pod."""
        window = flask.request.args.get("window", "1h")
        if window not in history.WINDOWS:
            flask.abort(400, f"window must be one of {', '.join(history.WINDOWS)}.")
        node, pod = (flask.request.args.get(name, "")[:_LONGEST_NAME] for name in ("node", "pod"))
        if pod:
            self._seen.pod(*pod.split("/", 1)) if "/" in pod else flask.abort(400, "pod must be NAMESPACE/NAME.")
        try:
            return _json(self._seen.source.series(node, pod, history.WINDOWS[window]))
        except meters.NoAnswer as cause:
            flask.abort(503, str(cause))


def _json(value: Any) -> flask.Response:
    return flask.Response(msgspec.json.encode(value), content_type="application/json")
