"""What one request sees: the last view of the cluster, as far as its viewer may see it, and how old it is."""

import threading
import time
from collections.abc import Callable
from typing import Any

import flask

from webui import extender_poller, models, views

_STALE_SECONDS = 30.0
_MOST_KEPT = 200

Key = tuple[object, ...]


class ViewCache:
    """What was computed from one view, shared by all requests until there is a newer view."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view: models.View | None = None
        self._values: dict[Key, Any] = {}

    def get(self, view: models.View, key: Key) -> Any:
        """Return what was computed from that view; None where it was not."""
        with self._lock:
            return self._values.get(key) if self._view is view else None

    def put(self, view: models.View, key: Key, value: Any) -> None:
        """Keep a value until there is a newer view."""
        with self._lock:
            if self._view is not view or len(self._values) >= _MOST_KEPT:
                self._view, self._values = view, {}
            self._values[key] = value


class Seen:
    """Reads for the current request. One request is answered from one view, whatever is read meanwhile."""

    def __init__(self, source: extender_poller.Source, clock: Callable[[], float] = time.time) -> None:
        self.source = source
        self._clock = clock
        self._visible = ViewCache()

    @property
    def whole(self) -> models.View:
        """The view of the whole cluster that this request is answered from."""
        view: models.View = flask.g.setdefault("whole_view", self.source.view)
        return view

    @property
    def view(self) -> models.View:
        """The part of it that the viewer may see."""
        whole, namespaces = self.whole, flask.g.viewer.namespaces
        visible: models.View | None = self._visible.get(whole, (namespaces,))
        if visible is None:
            visible = views.seen_by(whole, namespaces)
            self._visible.put(whole, (namespaces,), visible)
        return visible

    @property
    def problem(self) -> str:
        """Why there is no newer data; empty while it is fresh. The same for the whole request."""
        taken_at = self.whole.taken_at
        old = "it is old" if taken_at and self._clock() - taken_at > _STALE_SECONDS else ""
        problem: str = flask.g.setdefault("problem", self.source.problem or old)
        return problem

    @property
    def meter_problem(self) -> str:
        """Why measurements are missing; empty where none is. The same for the whole request."""
        problem: str = flask.g.setdefault("meter_problem", self.source.meter_problem)
        return problem

    def node(self, name: str) -> tuple[models.Node, str]:
        """Return a node, and why its measurements are missing.

        Raises:
            NotFound: There is no such node.
            ServiceUnavailable: Nothing has been read yet.
        """
        node, why = self.source.node(name)
        if node is None:
            self._refuse_before_first_data()
            flask.abort(404, f"There is no node {name}.")
        return views.shown(self.view, node), why

    def pod(self, namespace: str, name: str) -> models.Pod:
        """Return a pod. Errors as `node`."""
        pod = self.view.pods_by_key.get(f"{namespace}/{name}")
        if pod is None:
            self._refuse_before_first_data()
            flask.abort(404, f"There is no pod {namespace}/{name} that requests GPUs, or you may not see it.")
        return pod

    def changes(self) -> list[models.Change]:
        """Return the changes that the viewer may see, newest first."""
        visible = flask.g.viewer.namespaces
        return [
            change
            for change in self.source.changes
            if visible is None or not change.pod or views.namespace_of(change.pod) in visible
        ]

    def _refuse_before_first_data(self) -> None:
        """Abort with 503: before the first snapshot it is not known what exists."""
        if not self.whole.taken_at:
            flask.abort(503, f"There is no data yet: {self.problem}.")
