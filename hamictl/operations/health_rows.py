"""The rows of `hamictl ops health`: what is well, what is not, with numbers. Pure."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import objects
from gpu_sharing.core import errors, gpus, records
from hamictl import cluster_checks, findings, output, snapshot
from hamictl.operations import installed, rollouts

OK, WARNING, ERROR, UNKNOWN = "ok", "warning", "error", "unknown"
BAD = (WARNING, ERROR)
_WEEK_SECONDS = 7 * 86_400
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the screen."""

    part: str
    state: str
    detail: str


_STATES = {rollouts.State.DONE: OK, rollouts.State.UNDER_WAY: WARNING, rollouts.State.FAILED: ERROR}


def parts(installed_parts: Sequence[installed.Part]) -> list[Row]:
    """Return one row a Deployment or DaemonSet."""
    return [Row(part.title, _STATES[part.rollout.state], part.rollout.text) for part in installed_parts]


def pods(listed: Sequence[objects.Pod]) -> Row:
    """Return the row of the installation's pods; those that have ended are not counted."""
    alive = [pod for pod in listed if not pod.has_ended]
    waiting = [f"{pod.metadata.name} ({_why(pod)})" for pod in alive if not _is_ready(pod)]
    if not alive:
        return Row("pods", ERROR, "there is none")
    text = f"{len(alive) - len(waiting)} of {len(alive)} ready"
    if not waiting:
        return Row("pods", OK, text)
    return Row("pods", WARNING, f"{text}; not ready: {_some(waiting)}")


def _is_ready(pod: objects.Pod) -> bool:
    conditions = (pod.status.conditions or ()) if pod.status else ()
    return any(one.type == "Ready" and one.status == "True" for one in conditions)


def _why(pod: objects.Pod) -> str:
    statuses = (pod.status.container_statuses or ()) if pod.status else ()
    for one in statuses:
        if one.state and one.state.waiting and one.state.waiting.reason:
            return one.state.waiting.reason
    return (pod.status.phase if pod.status else "") or "Pending"


def leader(leases: Sequence[objects.Lease] | None, namespace: str, now: float) -> Row:
    """Return the row of the Lease's holder.

    Args:
        leases: Of the cluster; None where they may not be read.
        namespace: Of the installation.
        now: Unix seconds of the API server's clock.
    """
    if leases is None:
        return Row("leader", UNKNOWN, "the right is missing: list leases.coordination.k8s.io")
    for lease in leases:
        if (lease.metadata.namespace, lease.metadata.name) == (namespace, cluster_checks.SCHEDULER):
            renewed = objects.unix_seconds(lease.spec.renew_time)
            age = now - renewed
            if not lease.spec.holder_identity:
                return Row("leader", ERROR, "the Lease has no holder")
            is_old = age > (lease.spec.lease_duration_seconds or 0)
            detail = f"{lease.spec.holder_identity}, renewed {output.age(age)} ago"
            return Row("leader", ERROR if is_old else OK, detail)
    return Row("leader", ERROR, f"there is no Lease {cluster_checks.SCHEDULER} in {namespace}")


def certificate(webhooks: Sequence[cluster_checks.Webhook] | None, now: float) -> Row:
    """Return the row of the webhook's certificate."""
    if webhooks is None:
        return Row("certificate", UNKNOWN, "the right is missing: list mutatingwebhookconfigurations")
    left_seconds = min((one.ends_at for one in webhooks), default=float("inf")) - now
    if left_seconds == float("inf"):
        return Row("certificate", UNKNOWN, "no webhook names its authority" if webhooks else "no webhook is registered")
    if left_seconds <= 0:
        return Row("certificate", ERROR, f"it ended {output.age(-left_seconds)} ago")
    return Row("certificate", OK if left_seconds > _WEEK_SECONDS else WARNING, f"it ends in {output.age(left_seconds)}")


def nodes(cluster: snapshot.State) -> Iterator[Row]:
    """Yield the rows of the nodes with GPUs, and of their GPUs."""
    inventories, unreadable, cordoned = _inventories(cluster)
    every = [gpu for inventory in inventories.values() for gpu in inventory]
    ready = sum(1 for node in cluster.nodes if node.metadata.name in inventories and _node_is_ready(node))
    text = f"{len(inventories)} registered, {ready} ready"
    if unreadable:
        yield Row("nodes", ERROR, f"{text}; unreadable record: {_some(unreadable)}")
    elif not inventories:
        yield Row("nodes", ERROR, f"{text}: no device plugin has published GPUs")
    else:
        yield Row("nodes", OK if ready == len(inventories) else WARNING, text)
    unhealthy = sum(1 for gpu in every if not gpu.healthy)
    detail = f"{len(every)}, {unhealthy} unhealthy, {cordoned} cordoned"
    yield Row("GPUs", WARNING if unhealthy else OK if every else ERROR, detail)


def _inventories(cluster: snapshot.State) -> tuple[dict[str, tuple[gpus.Gpu, ...]], list[str], int]:
    """Return GPUs by node, nodes with an unreadable record, and the number of cordoned GPUs."""
    readable: dict[str, tuple[gpus.Gpu, ...]] = {}
    unreadable, cordoned = [], 0
    for node in cluster.nodes:
        annotations = node.metadata.annotations or {}
        if not annotations.get(records.INVENTORY):
            continue
        try:
            inventory = records.decode_inventory(annotations[records.INVENTORY])
        except errors.CorruptRecord:
            unreadable.append(node.metadata.name)
            continue
        readable[node.metadata.name] = inventory
        kept_out = records.decode_cordon(annotations.get(records.CORDON, ""))
        cordoned += sum(1 for gpu in inventory if gpu.uuid in kept_out)
    return readable, unreadable, cordoned


def _node_is_ready(node: objects.Node) -> bool:
    return any(one.type == "Ready" and one.status == "True" for one in node.status.conditions or ())


def alerts(firing: Sequence[Mapping[str, str]]) -> Row:
    """Return the row of the alerts that fire; those with severity `none` only inform."""
    counts = collections.Counter(one.get("alertname", "?") for one in firing if one.get("severity") != "none")
    if not counts:
        return Row("alerts", OK, "none fires")
    critical = any(one.get("severity") == "critical" for one in firing)
    names = [f"{name} ({count})" if count > 1 else name for name, count in sorted(counts.items())]
    return Row("alerts", ERROR if critical else WARNING, f"{sum(counts.values())} fire: {_some(names)}")


def doctor(checks: int, problems: Sequence[findings.Finding]) -> Row:
    """Return the row of doctor's sums, with the codes."""
    summary = findings.summary(checks, problems)
    text = f"{checks} checks: {summary['errors']:,} errors, {summary['warnings']:,} warnings"
    codes = list(dict.fromkeys(one.code for one in problems))
    if not codes:
        return Row("doctor", OK, text)
    return Row("doctor", ERROR if summary["errors"] else WARNING, f"{text}: {_some(codes)}; hamictl doctor has each")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
