"""The HTML pages: overview, nodes, pods, search."""

from typing import Any

import flask
import msgspec
from werkzeug.wrappers import Response

from gpu_sharing.adapters import read_api_types
from gpu_sharing.core import error_codes
from webui import extender_poller, filters, history, lists, models, node_heatmap, remediation_list, views
from webui.seen import Seen

_MOST_EVENTS = 12
_NEAREST, _MOST_NODES = 5, 500
"""Nodes that a pending pod's page shows, and how many after the link to all."""
_FEW_NODES = 24
"""Up to so many nodes the overview shows each GPU; of more, one cell a node."""


class Pages:
    """The handlers of the pages."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._source = seen.source

    def blueprint(self) -> flask.Blueprint:
        """Return the routes of the pages."""
        routes = flask.Blueprint("pages", __name__)
        routes.add_url_rule("/", view_func=self.overview)
        routes.add_url_rule("/nodes", view_func=self.nodes)
        routes.add_url_rule("/nodes/<name>", view_func=self.node)
        routes.add_url_rule("/pods", view_func=self.pods)
        routes.add_url_rule("/pods/<namespace>/<name>", view_func=self.pod)
        routes.add_url_rule("/search", view_func=self.search)
        return routes

    def _windows(self) -> Any:
        return history.WINDOWS if self._source.has_prometheus else ()

    def overview(self) -> str:
        """Show how full the cluster is, what is pending and what happened."""
        view = self._seen.view
        few = len(view.nodes) <= _FEW_NODES
        return flask.render_template(
            "overview.html",
            page=view.overview,
            nodes=[views.shown(view, node) for node in view.nodes] if few else [],
            heatmap=() if few else node_heatmap.groups(view.nodes),
            columns=node_heatmap.COLUMNS * node_heatmap.CELL,
            cell=node_heatmap.CELL,
            changes=self._seen.changes()[:_MOST_EVENTS],
            measured_at=view.measured_at,
            remediation=self._source.remediation,
            acts=remediation_list.rows(self._source.remediation)[:_MOST_EVENTS],
            series=self._source.history.series(),
            windows=self._windows(),
        )

    def nodes(self) -> str:
        """Show a filtered list of nodes."""
        view, wanted = self._seen.view, filters.from_url()
        return flask.render_template(
            "nodes.html",
            page=lists.nodes(view, wanted),
            wanted=wanted,
            model_names=view.model_names,
            levels=models.LEVELS,
            states=models.GPU_STATES,
            sorts=lists.NODE_SORTS,
        )

    def node(self, name: str) -> str:
        """Show one node and its GPUs."""
        node, why = self._seen.node(name)
        return flask.render_template(
            "node.html",
            node=node,
            why_unknown=why,
            remediation=self._source.remediation,
            acts=remediation_list.rows(self._source.remediation, name),
            series=self._source.history.series(name),
            windows=self._windows(),
        )

    def pods(self) -> str:
        """Show a filtered list of pods."""
        view, wanted = self._seen.view, filters.from_url()
        return flask.render_template(
            "pods.html",
            page=lists.pods(view, wanted),
            wanted=wanted,
            namespaces=view.namespaces,
            states=models.POD_STATES,
            sorts=lists.POD_SORTS,
        )

    def pod(self, namespace: str, name: str) -> str:
        """Show one pod: its GPUs, or why it is pending, and its events."""
        pod = self._seen.pod(namespace, name)
        explanation, explanation_error = self._explanation(pod)
        events, events_error = self._events(pod)
        node, why = self._source.node(pod.node) if pod.node else (None, "")
        held = [(gpu, part) for gpu in (node.gpus if node else ()) for part in gpu.slices if part.pod == pod.key]
        return flask.render_template(
            "pod.html",
            pod=pod,
            held=held,
            explanation=explanation,
            listed=_listed(explanation) if explanation else (),
            explanation_error=explanation_error,
            events=events,
            events_error=events_error,
            why_unknown=why,
            windows=self._windows(),
        )

    def _explanation(self, pod: models.Pod) -> tuple[read_api_types.Explanation | None, str]:
        """Why a pod is pending, or why that cannot be read."""
        if pod.state != "pending":
            return None, ""
        try:
            explanation = self._source.explain(pod.namespace, pod.name, _MOST_NODES if _every_node() else _NEAREST + 1)
        except extender_poller.NoAnswer as cause:
            return None, str(cause)
        return _visible(explanation, flask.g.viewer.namespaces), ""

    def _events(self, pod: models.Pod) -> tuple[Any, str]:
        try:
            return self._source.events(pod.namespace, pod.name), ""
        except extender_poller.NoAnswer as cause:
            return (), str(cause)

    def search(self) -> str | Response:
        """Show nodes and pods by a part of their names; of a single one its page."""
        text = filters.from_url().text
        named_nodes, named_pods = lists.search(self._seen.view, text)
        urls = [
            *(flask.url_for("pages.node", name=node.name) for node in named_nodes.items),
            *(flask.url_for("pages.pod", namespace=pod.namespace, name=pod.name) for pod in named_pods.items),
        ]
        if text and len(urls) == 1:
            return flask.redirect(urls[0])
        return flask.render_template("search.html", text=text, nodes=named_nodes, pods=named_pods)


def _every_node() -> bool:
    return flask.request.args.get("nodes") == "all"


def _listed(explanation: read_api_types.Explanation) -> list[read_api_types.NodeExplanation]:
    """Return the nearest nodes, or with `nodes=all` in the URL the first 500; a few nodes are always shown."""
    if _every_node() or explanation.node_count <= _NEAREST or not explanation.groups:
        return explanation.nodes[:_MOST_NODES]
    with_gpus = [node for node in explanation.nodes if node.code != error_codes.NODE_NOT_REGISTERED]
    return with_gpus[:_NEAREST]


def _visible(explanation: read_api_types.Explanation, namespaces: frozenset[str] | None) -> read_api_types.Explanation:
    """An explanation without the names of pods that the viewer may not see."""
    if namespaces is None:
        return explanation

    def shown(keys: list[str]) -> list[str]:
        mine = [key for key in keys if views.namespace_of(key) in namespaces]
        hidden = len(keys) - len(mine)
        return [*mine, *([f"{hidden} of other namespaces"] if hidden else [])]

    nodes = [
        msgspec.structs.replace(node, waits_for=shown(node.waits_for), evictable=shown(node.evictable))
        for node in explanation.nodes
    ]
    return msgspec.structs.replace(explanation, nodes=nodes)
