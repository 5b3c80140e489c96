"""The parts of an installation: the Deployments and DaemonSets of the chart, by their labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors
from hamictl import failures, snapshot
from hamictl.operations import rollouts, writing

SCHEDULER = "scheduler"
DEPLOYMENT = "hami-scheduler"
LABEL = "app.kubernetes.io/name"
SELECTED = "labelSelector=app.kubernetes.io%2Fname%3Dhami"
_COMPONENT = "app.kubernetes.io/component"
_MODULE = "scheduler_extender"
_SINGULAR = {rollouts.DEPLOYMENTS: "deployment", rollouts.DAEMON_SETS: "daemonset"}
_ORDER = (SCHEDULER, "webui", "device-plugin")
"""The order in which parts are restarted and updated; the others follow by name."""


@dataclass(frozen=True, slots=True)
class Part:
    """One Deployment or DaemonSet of the installation."""

    kind: str
    """`rollouts.DEPLOYMENTS` or `rollouts.DAEMON_SETS`."""
    workload: rollouts.Workload

    @property
    def component(self) -> str:
        """Its component, such as `scheduler`; its name where the label is missing."""
        return (self.workload.metadata.labels or {}).get(_COMPONENT) or self.workload.metadata.name

    @property
    def title(self) -> str:
        """Its name as of kubectl, such as `deployment/hami-scheduler`."""
        return f"{_SINGULAR[self.kind]}/{self.workload.metadata.name}"

    @property
    def path(self) -> str:
        """Its path at the API server."""
        return f"/apis/apps/v1/namespaces/{self.workload.metadata.namespace}/{self.kind}/{self.workload.metadata.name}"

    @property
    def is_on_delete(self) -> bool:
        """Whether its pods change only when they are deleted."""
        return self.workload.spec.update_strategy.type == rollouts.ON_DELETE

    @property
    def rollout(self) -> rollouts.Rollout:
        """The state of its rollout."""
        return rollouts.rollout(self.kind, self.workload)


def containers(part: Part) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every container of a part with its field, `initContainers` or `containers`."""
    for field in ("initContainers", "containers"):
        for container in part.workload.spec.template.spec.get(field) or ():
            yield field, container


async def parts(client: kubernetes.Client, namespace: str) -> list[Part]:
    """Return the parts of our installation, the scheduler first.

    Raises:
        CommandFailed: There is none in that namespace, or another project's.
    """
    base = f"/apis/apps/v1/namespaces/{namespace}"
    try:
        scheduler = await client.get(f"{base}/{rollouts.DEPLOYMENTS}/{DEPLOYMENT}", rollouts.Workload)
    except errors.NotFound as cause:
        detail = f"there is no Deployment {DEPLOYMENT} in namespace {namespace}"
        raise writing.refusal(error_codes.OPS_NOT_INSTALLED, detail) from cause
    if not _is_ours(scheduler):
        detail = f"no container of Deployment {DEPLOYMENT} in namespace {namespace} runs {_MODULE}"
        raise writing.refusal(error_codes.OPS_FOREIGN_INSTALLATION, detail)
    found = [
        Part(kind, workload)
        for kind in (rollouts.DEPLOYMENTS, rollouts.DAEMON_SETS)
        for workload in await snapshot.list_all(client, f"{base}/{kind}?{SELECTED}", rollouts.Workload)
    ]
    if all(part.title != f"deployment/{DEPLOYMENT}" for part in found):
        found.append(Part(rollouts.DEPLOYMENTS, scheduler))
    return sorted(found, key=_position)


def _is_ours(scheduler: rollouts.Workload) -> bool:
    pod = Part(rollouts.DEPLOYMENTS, scheduler)
    return any((container.get("args") or [""])[0] == _MODULE for _, container in containers(pod))


def _position(part: Part) -> tuple[int, str]:
    place = _ORDER.index(part.component) if part.component in _ORDER else len(_ORDER)
    return place, part.component


def select(known: Sequence[Part], component: str) -> Part:
    """Return the part with that name.

    Raises:
        CommandFailed: There is none.
    """
    for part in known:
        if part.component == component:
            return part
    names = [part.component for part in known]
    sentence = f"{error_codes.OPS_UNKNOWN_PART}: no part {component} is installed"
    raise failures.unknown(sentence, component, names, hint=f"installed are {', '.join(names)}")
