"""Lists: filtered, ordered and cut into pages. Pure."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from webui import models, views

NODES_A_PAGE, PODS_A_PAGE = 50, 100
_MOST_FOUND = 25
T = TypeVar("T")

NODE_SORTS = ("name", "fullest", "emptiest")
POD_SORTS = ("name", "oldest", "newest", "largest", "unused", "node")
_POD_ORDERS: dict[str, Callable[[models.Pod], Any]] = {
    "oldest": lambda pod: pod.created_at or float("inf"),
    "newest": lambda pod: -pod.created_at,
    "largest": lambda pod: -pod.allocated_mib,
    "unused": lambda pod: -pod.unused_mib,
    "node": lambda pod: (pod.node, pod.key),
}


def nodes(view: models.View, wanted: models.Filters) -> models.Page[models.Node]:
    """The nodes of a page."""
    text, (label, _, value) = wanted.text.lower(), wanted.label.partition("=")
    asks_value = "=" in wanted.label
    if wanted.namespace and view.only is not None and wanted.namespace not in view.only:
        return _page([], 1, NODES_A_PAGE)
    chosen = [
        node
        for node in view.nodes
        if text in node.name.lower()
        and (not wanted.model or wanted.model in node.models)
        and (not wanted.state or any(gpu.state == wanted.state for gpu in node.gpus))
        and (not wanted.free_mib or node.largest_free_mib >= wanted.free_mib)
        and (not wanted.level or node.level == wanted.level)
        and (not label or (node.labels.get(label) == value if asks_value else label in node.labels))
        and (not wanted.namespace or _holds(node, wanted.namespace))
    ]
    if wanted.sort in ("fullest", "emptiest"):
        chosen.sort(key=lambda node: node.allocated_mib / max(node.total_mib, 1), reverse=wanted.sort == "fullest")
    page = _page(chosen, wanted.page, NODES_A_PAGE)
    return models.Page([views.shown(view, node) for node in page.items], page.total, page.number, page.pages)


def _holds(node: models.Node, namespace: str) -> bool:
    return any(views.namespace_of(part.pod) == namespace for gpu in node.gpus for part in gpu.slices)


def pods(view: models.View, wanted: models.Filters) -> models.Page[models.Pod]:
    """Return the pods of one page of the list."""
    text = wanted.text.lower()
    chosen = [
        pod
        for pod in view.pods
        if text in pod.key.lower()
        and (not wanted.state or pod.state == wanted.state)
        and (not wanted.namespace or pod.namespace == wanted.namespace)
        and (not wanted.code or ((pod.code or "UNDECIDED") == wanted.code and pod.state == "pending"))
    ]
    if wanted.sort in _POD_ORDERS:
        chosen.sort(key=_POD_ORDERS[wanted.sort])
    return _page(chosen, wanted.page, PODS_A_PAGE)


def search(view: models.View, text: str) -> tuple[models.Page[models.Node], models.Page[models.Pod]]:
    """Return the nodes and pods whose names contain a text; only the first ones of each."""
    low = text.lower()
    named_nodes = [node for node in view.nodes if low in node.name.lower()]
    named_pods = [pod for pod in view.pods if low in pod.key.lower()]
    return _page(named_nodes, 1, _MOST_FOUND), _page(named_pods, 1, _MOST_FOUND)


def _page(chosen: Sequence[T], number: int, size: int) -> models.Page[T]:
    pages = max((len(chosen) + size - 1) // size, 1)
    number = min(max(number, 1), pages)
    return models.Page(chosen[(number - 1) * size : number * size], len(chosen), number, pages)
