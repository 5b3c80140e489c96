"""`hamictl ops cleanup`: delete failed and evicted pods with GPU requests, and say which leftovers are out of reach."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gpu_sharing.adapters import decoding, kubernetes, objects
from gpu_sharing.core import error_codes, errors, records, requests
from hamictl import failures, flags, installation, output, snapshot
from hamictl.operations import image_check, installed, writing
from scheduler_extender.cluster import from_objects

_AGE = re.compile(r"([1-9]\d{0,5})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FAILED = "fieldSelector=status.phase%3DFailed"
_RIGHTS = "list and delete pods, list nodes, and get and list deployments and daemonsets in the extender's namespace"
_MOST_SHOWN = 20


class _Terminated(msgspec.Struct, rename="camel"):
    finished_at: str | None = None


class _ContainerState(msgspec.Struct):
    terminated: _Terminated | None = None


class _Container(msgspec.Struct):
    state: _ContainerState = msgspec.field(default_factory=_ContainerState)


class _Condition(msgspec.Struct, rename="camel"):
    last_transition_time: str | None = None


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    reason: str = ""
    container_statuses: list[_Container] | None = None
    conditions: list[_Condition] | None = None


class _Pod(msgspec.Struct):
    """The part of a failed pod's status that says when and why it ended."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    status: _Status = msgspec.field(default_factory=_Status)

    def ended_at(self) -> float:
        """Return the Unix seconds of the latest sign of its end; 0 without any."""
        status = self.status
        times = [one.state.terminated.finished_at for one in status.container_statuses or () if one.state.terminated]
        times += [one.last_transition_time for one in status.conditions or ()]
        times.append(self.metadata.creation_timestamp)
        return max(objects.unix_seconds(text) for text in times)


@dataclass(frozen=True, slots=True)
class FailedPod:
    """A failed pod that is deleted."""

    namespace: str
    name: str
    uid: str
    why: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class _Found:
    pods: Sequence[FailedPod]
    lines: Sequence[str]
    """About leftovers on nodes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument(
        "--older-than", type=_age, default=_age("24h"), metavar="AGE", help="such as 30m, 24h, 7d (default 24h)"
    )
    parser.add_argument("-n", "--namespace", default="", help="only in this namespace (default: in all)")
    writing.add_flags(parser)
    flags.add_cluster(parser)


def _age(text: str) -> float:
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 30m, 24h or 7d")
    return float(int(match[1]) * _SECONDS[match[2]])


def run(options: argparse.Namespace) -> int:
    """Delete the pods and report the leftovers on nodes. Returns the exit status."""

    async def read(client: kubernetes.Client) -> _Found:
        return await _read(client, options)

    found = writing.call(options, read, _RIGHTS)
    for pod in found.pods[:_MOST_SHOWN]:
        print(f"pod/{pod.namespace}/{pod.name}: {pod.why}, ended {output.age(pod.age_seconds)} ago")
    if len(found.pods) > _MOST_SHOWN:
        print(f"and {len(found.pods) - _MOST_SHOWN:,} more")
    print("\n".join(found.lines))
    if not found.pods:
        print(f"no failed pod with GPU requests ended more than {output.age(options.older_than)} ago")
        return 0
    if not options.dry_run:
        writing.confirm(options, f"Delete {len(found.pods):,} pods with their logs?")

    async def act(client: kubernetes.Client) -> int:
        return await _delete(client, found.pods, dry_run=options.dry_run)

    return writing.call(options, act, _RIGHTS)


async def _read(client: kubernetes.Client, options: argparse.Namespace) -> _Found:
    parts = await installed.parts(client, options.system_namespace)
    names = await installation.resource_names(client, options.system_namespace)
    found = await _failed(client, options.namespace, names) + await _checks(client, options.system_namespace)
    pods = [pod for pod in found if pod.age_seconds >= options.older_than]
    nodes = await snapshot.list_all(client, "/api/v1/nodes", objects.Node)
    return _Found(sorted(pods, key=lambda one: (one.namespace, one.name)), leftovers(nodes, parts))


async def _failed(client: kubernetes.Client, namespace: str, names: requests.ResourceNames) -> list[FailedPod]:
    """Return failed pods with GPU requests."""
    path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
    now, found = time.time(), []
    async for page in client.pages(f"{path}?{_FAILED}", 500):
        for raw in page.items or ():
            pod = decoding.json_as(objects.Pod, raw)
            if not pod.metadata.deletion_timestamp and from_objects.is_ours(pod, names):
                found.append(_failed_pod(decoding.json_as(_Pod, raw), now, "Failed"))
    return found


async def _checks(client: kubernetes.Client, namespace: str) -> list[FailedPod]:
    """Return the pods of image checks that an interrupted update left; they end by themselves."""
    selector = f"labelSelector=app.kubernetes.io%2Fcomponent%3D{image_check.COMPONENT}"
    pods = await snapshot.list_all(client, f"/api/v1/namespaces/{namespace}/pods?{selector}", _Pod)
    return [_failed_pod(pod, time.time(), "image check") for pod in pods if pod.status.phase in ("Failed", "Succeeded")]


def _failed_pod(pod: _Pod, now: float, why: str) -> FailedPod:
    metadata = pod.metadata
    return FailedPod(metadata.namespace, metadata.name, metadata.uid, pod.status.reason or why, now - pod.ended_at())


def leftovers(nodes: Sequence[objects.Node], parts: Sequence[installed.Part]) -> list[str]:
    """Return the lines about files of ended containers: nodes' problems, and what cannot be reached from here.

    The device plugin of a node deletes them by itself; from outside a node they are not seen.
    """
    lines = []
    for node in nodes:
        problems = records.decode_problems((node.metadata.annotations or {}).get(records.PROBLEMS, ""))
        lines += [f"node/{node.metadata.name}: {code}: {text}" for code, text in problems.items()]
    served = [node for node in nodes if records.is_our_agent((node.metadata.annotations or {}).get(records.AGENT))]
    lines.append(
        f"files on nodes: the device plugin deletes them while it runs, on {len(served)} nodes; "
        "they are not visible from here"
    )
    for part in parts:
        if part.component == "device-plugin":
            missing = part.workload.status.desired_number_scheduled - part.workload.status.number_available
            if missing > 0:
                lines.append(f"files on nodes: {missing} device plugins do not run: run hamictl doctor node there")
    return lines


async def _delete(client: kubernetes.Client, pods: Sequence[FailedPod], *, dry_run: bool) -> int:
    deleted = failed = 0
    for count, pod in enumerate(pods, 1):
        path = writing.path_of(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", dry_run=dry_run)
        body = json.dumps({"preconditions": {"uid": pod.uid}}).encode()
        try:
            await client.delete(path, body=body)
            deleted += 1
        except (errors.NotFound, errors.Conflict):
            writing.progress(f"{count} of {len(pods)}: pod/{pod.namespace}/{pod.name} is gone already")
            continue
        except (errors.Forbidden, errors.Invalid) as cause:
            failed += 1
            writing.progress(f"{count} of {len(pods)}: {error_codes.OPS_NOT_DELETED}: {cause}")
            continue
        writing.progress(f"{count} of {len(pods)}: pod/{pod.namespace}/{pod.name}")
    print(f"dry run: {deleted:,} pods would be deleted" if dry_run else f"{deleted:,} pods deleted")
    return failures.NEGATIVE if failed else 0
