"""What changed between two snapshots of the cluster. Pure.

It compares what the API server keeps, so it does not matter which scheduler acted or which process restarted.
"""

from collections.abc import Iterator

from webui import models

_HOUR_SECONDS = 3_600.0


def between(before: models.View, after: models.View) -> list[models.Change]:
    """Return the differences, oldest first; without an earlier snapshot, the pods placed within the last hour."""
    if not before.taken_at:
        return sorted(_earlier(after), key=lambda change: change.at)
    return [*_of_pods(before, after), *_of_nodes(before, after)]


def _earlier(after: models.View) -> Iterator[models.Change]:
    for pod in after.pods:
        if after.taken_at - pod.bound_at < _HOUR_SECONDS:
            yield models.Change(float(pod.bound_at), "placed", pod.key, pod.node, _holding(pod))


def _of_pods(before: models.View, after: models.View) -> Iterator[models.Change]:
    at = after.taken_at
    for key, pod in after.pods_by_key.items():
        old = before.pods_by_key.get(key)
        if pod.node:
            if old is None or old.node != pod.node:
                yield models.Change(float(pod.bound_at) or at, "placed", key, pod.node, _holding(pod))
        elif pod.code and (old is None or old.code != pod.code):
            yield models.Change(at, "rejected", key, "", _asking(pod), pod.code)
        elif old is None:
            yield models.Change(at, "pending", key, "", _asking(pod))
    for key, pod in before.pods_by_key.items():
        if key not in after.pods_by_key:
            yield models.Change(at, "ended", key, pod.node, _holding(pod) if pod.node else _asking(pod))


def _of_nodes(before: models.View, after: models.View) -> Iterator[models.Change]:
    at = after.taken_at
    for name, node in after.nodes_by_name.items():
        old = before.nodes_by_name.get(name)
        if old is None:
            yield models.Change(at, "node added", "", name, f"{len(node.gpus)} GPUs")
            continue
        if old.gpus == node.gpus:
            continue
        states = {gpu.uuid: gpu.state for gpu in old.gpus}
        for gpu in node.gpus:
            was = states.get(gpu.uuid, gpu.state)
            if gpu.state == "unhealthy" and was != "unhealthy":
                yield models.Change(
                    at, "unhealthy", "", name, f"GPU {gpu.index}: {gpu.unhealthy_reason or 'no reason is known'}"
                )
            elif was == "unhealthy" and gpu.state != "unhealthy":
                yield models.Change(at, "healthy", "", name, f"GPU {gpu.index}")
    for name in before.nodes_by_name.keys() - after.nodes_by_name.keys():
        yield models.Change(at, "node gone", "", name, "")


def _holding(pod: models.Pod) -> str:
    return f"{pod.allocated_mib:,} MiB on {pod.gpus} GPU{'s' if pod.gpus != 1 else ''}"


def _asking(pod: models.Pod) -> str:
    return " + ".join(one.words for one in pod.requests)
