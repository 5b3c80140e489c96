"""The scheduling state of a cluster: nodes, pods with GPUs and quotas, with the fields that the scheduler reads.

Other fields are dropped, so a saved state contains no environment, no secret and no image. Names can be hashed; GPU
UUIDs and models are kept, because scheduling needs them.
"""

import asyncio
import datetime
import hashlib
import pathlib
import re
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import errors, gangs, records, requests
from hamictl import failures, installation
from scheduler_extender.cluster import from_objects

VERSION = 1
_PAGE_SIZE = 1000
_RECORDED = re.compile(r"(nvidia\.com|hami\.io)/")

T = TypeVar("T", objects.Node, objects.Pod, objects.ResourceQuota)
K = TypeVar("K")


class State(msgspec.Struct):
    """A cluster at one moment."""

    version: int
    taken_at: str
    nodes: list[objects.Node]
    pods: list[objects.Pod]
    quotas: list[objects.ResourceQuota]
    resource_names: requests.ResourceNames = msgspec.field(default_factory=requests.ResourceNames)
    """The names of the GPU resources."""
    misspelled: list[objects.Pod] | None = None
    """Pods that request no GPU, and name a resource or annotation that resembles one of ours."""


def read_cluster(
    kubeconfig: pathlib.Path | None, context: str, system_namespace: str, *, with_quotas: bool = True
) -> State:
    """Return the state of a live cluster.

    Raises:
        CommandFailed: The cluster cannot be reached, or the account may not read it.
    """
    try:
        return asyncio.run(_read(kubeconfig, context, system_namespace, with_quotas=with_quotas))
    except errors.SettingsError as cause:
        raise failures.CommandFailed(str(cause), "set --kubeconfig FILE, or --snapshot FILE") from cause
    except errors.KubernetesError as cause:
        raise failures.CommandFailed(str(cause), "you need to list nodes, pods and resourcequotas") from cause


async def _read(kubeconfig: pathlib.Path | None, context: str, system_namespace: str, *, with_quotas: bool) -> State:
    async with kubernetes.Client(kubeconfig, "hamictl", context) as client:
        names = await installation.resource_names(client, system_namespace)
        nodes = await list_all(client, "/api/v1/nodes", objects.Node)
        pods = await list_all(client, "/api/v1/pods", objects.Pod)
        quotas = await list_all(client, "/api/v1/resourcequotas", objects.ResourceQuota) if with_quotas else []
    kept = [_trimmed(pod) for pod in pods if from_objects.is_ours(pod, names) and not pod.has_ended]
    others = [_trimmed(pod) for pod in pods if not from_objects.is_ours(pod, names) and _resembles_ours(pod, names)]
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return State(VERSION, moment, [_trimmed(node) for node in nodes], kept, quotas, names, others or None)


def _resembles_ours(pod: objects.Pod, names: requests.ResourceNames) -> bool:
    containers = (*pod.init_containers, *pod.containers)
    return not pod.has_ended and bool(requests.unknown_words(containers, pod.annotations, names))


async def list_all(client: kubernetes.Client, path: str, kind: type[K]) -> list[K]:
    """Return all objects of a kind. Errors as in `kubernetes.Client.pages`."""
    listed = []
    async for page in client.pages(path, _PAGE_SIZE):
        listed += [msgspec.json.decode(raw, type=kind) for raw in page.items or ()]
    return listed


def _trimmed(item: T) -> T:
    """Return the object with our annotations only."""
    annotations = item.metadata.annotations or {}
    item.metadata.annotations = {key: value for key, value in annotations.items() if _RECORDED.match(key)}
    return item


def save(state: State, path: pathlib.Path) -> None:
    """Write a state as JSON.

    Raises:
        CommandFailed: It cannot be written.
    """
    try:
        path.write_bytes(
            msgspec.json.format(msgspec.json.encode(_without_nothing(msgspec.to_builtins(state))), indent=1)
        )
    except OSError as cause:
        raise failures.CommandFailed(f"{path}: {cause.strerror}") from cause


def load(path: pathlib.Path) -> State:
    """Read a saved state.

    Raises:
        CommandFailed: The file is not a snapshot, or has another version.
    """
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except OSError as cause:
        raise failures.CommandFailed(f"{path}: {cause.strerror}") from cause
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise failures.CommandFailed(
            f"{path} is not a snapshot: {cause}", "create one with hamictl snapshot FILE"
        ) from cause
    if state.version != VERSION:
        raise failures.CommandFailed(f"{path} is a snapshot of version {state.version}, and only {VERSION} is known")
    return state


def hashed(state: State, salt: str = "") -> State:
    """Return the state with names of nodes, pods, namespaces and quotas, and values of labels, hashed with a salt.

    Equal names stay equal within one state. The salt is random by default, so that names cannot be guessed.
    """
    salt = salt or secrets.token_hex(16)

    def mark(text: str) -> str:
        return "h" + hashlib.sha256(f"{salt}/{text}".encode()).hexdigest()[:12] if text else ""

    body: Any = _hashed(_without_nothing(msgspec.to_builtins(state)), mark)
    return msgspec.convert(body, State)


_HASHED_KEYS = frozenset(
    {"name", "namespace", "nodeName", "uid", "nominatedNodeName", "values", records.NODE, gangs.NAME}
)
_HASHED_VALUES = frozenset({"labels", "nodeSelector", "matchLabels"})
_LEFT_OUT = frozenset({"message", records.HOLD})
"""Texts that may contain names."""


def _hashed(value: Any, mark: Callable[[str], str], key: str = "", parent: str = "") -> Any:
    if isinstance(value, dict):
        kept = ((inner, one) for inner, one in value.items() if inner not in _LEFT_OUT)
        return {inner: _hashed(one, mark, inner, key) for inner, one in kept}
    if isinstance(value, list):
        return [_hashed(one, mark, key, parent) for one in value]
    if isinstance(value, str):
        is_name = (key in _HASHED_KEYS and parent != "schedulingGates") or parent in _HASHED_VALUES
        return mark(value) if is_name else value
    return value


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nothing(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nothing(one) for one in value]
    return value
