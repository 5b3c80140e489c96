"""The state of a rollout of a Deployment or DaemonSet, by its status. Pure.

Source: the Deployment and DaemonSet controllers' fields of apps/v1, read in the order of `kubectl rollout status`.
"""

import enum
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import objects

DEPLOYMENTS, DAEMON_SETS = "deployments", "daemonsets"
ON_DELETE = "OnDelete"
_DEADLINE = "ProgressDeadlineExceeded"


class WorkloadStatus(msgspec.Struct, gc=False, rename="camel"):
    """`status` of a Deployment or DaemonSet: the fields of both."""

    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    available_replicas: int = 0
    desired_number_scheduled: int = 0
    updated_number_scheduled: int = 0
    number_available: int = 0
    conditions: list[objects.Condition] | None = None


class Template(msgspec.Struct, gc=False):
    """The pod template, whose `spec` stays a plain object."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    spec: dict[str, Any] = msgspec.field(default_factory=dict)


class UpdateStrategy(msgspec.Struct, gc=False):
    """How a DaemonSet replaces its pods."""

    type: str = ""


class WorkloadSpec(msgspec.Struct, gc=False, rename="camel"):
    """`spec` of a Deployment or DaemonSet."""

    replicas: int | None = None
    paused: bool | None = None
    template: Template = msgspec.field(default_factory=Template)
    update_strategy: UpdateStrategy = msgspec.field(default_factory=UpdateStrategy)


class Workload(msgspec.Struct, gc=False):
    """The part of a Deployment or DaemonSet that is read."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    spec: WorkloadSpec = msgspec.field(default_factory=WorkloadSpec)
    status: WorkloadStatus = msgspec.field(default_factory=WorkloadStatus)


class State(enum.Enum):
    """How far a rollout is."""

    DONE = "rolled out"
    UNDER_WAY = "under way"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The state of a rollout, with its numbers."""

    state: State
    text: str


def rollout(kind: str, workload: Workload) -> Rollout:
    """Return the state of the newest rollout.

    Args:
        kind: `DEPLOYMENTS` or `DAEMON_SETS`.
        workload: With its status.
    """
    if workload.status.observed_generation < workload.metadata.generation:
        return Rollout(State.UNDER_WAY, "the change is not yet read by its controller")
    return _deployment(workload) if kind == DEPLOYMENTS else _daemon_set(workload)


def _deployment(workload: Workload) -> Rollout:
    wanted = 1 if workload.spec.replicas is None else workload.spec.replicas
    status = workload.status
    if workload.spec.paused:
        return Rollout(State.FAILED, "its rollout is paused; kubectl rollout resume continues it")
    for condition in status.conditions or ():
        if condition.type == "Progressing" and condition.reason == _DEADLINE:
            return Rollout(
                State.FAILED, f"no progress until its deadline: {_numbers(status.available_replicas, wanted)}"
            )
    if status.updated_replicas < wanted:
        return Rollout(State.UNDER_WAY, f"{status.updated_replicas} of {wanted} replicas updated")
    if status.replicas > status.updated_replicas:
        return Rollout(State.UNDER_WAY, f"{status.replicas - status.updated_replicas} old replicas terminate")
    return _available(status.available_replicas, wanted)


def _daemon_set(workload: Workload) -> Rollout:
    status, wanted = workload.status, workload.status.desired_number_scheduled
    if status.updated_number_scheduled < wanted and workload.spec.update_strategy.type != ON_DELETE:
        return Rollout(State.UNDER_WAY, f"{status.updated_number_scheduled} of {wanted} pods updated")
    return _available(status.number_available, wanted)


def _available(available: int, wanted: int) -> Rollout:
    return Rollout(State.DONE if available >= wanted else State.UNDER_WAY, _numbers(available, wanted))


def _numbers(available: int, wanted: int) -> str:
    return f"{available} of {wanted} pods available"
