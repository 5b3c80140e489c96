"""`hamictl snapshot`: nodes, pods with GPUs and quotas, with the fields that the scheduler reads.

Other fields are dropped, so a saved state contains no environment, no secret and no image. Names can be hashed; GPU
UUIDs and models are kept, because scheduling needs them.
"""

import argparse
import datetime
import hashlib
import pathlib
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from gpu_sharing.adapters import decoding, discovery, kubernetes, objects, read_api_types
from gpu_sharing.core import errors, gangs, records, requests
from hamictl import api_server, failures, flags, installation, reader
from scheduler_extender.cluster import from_objects

VERSION = 1
_PAGE_SIZE = 1000
_ANSWER_SECONDS = 30.0
_GANG_APIS = (gangs.KUBERNETES, gangs.COSCHEDULING)
_RECORDED = re.compile(r"(nvidia\.com|hami\.io|volcano\.sh)/")

T = TypeVar("T", objects.Node, objects.Pod, objects.ResourceQuota)
K = TypeVar("K")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("file", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--hash-names", action="store_true", help="hash names of nodes, pods, namespaces and labels")
    parser.add_argument(
        "--profile",
        type=flags.whole(1, read_api_types.LONGEST_PROFILE_SECONDS, "a number of seconds"),
        metavar="SECONDS",
        help="with a profile of the extender, for a bug report",
    )
    flags.add_cluster_and_names(parser)


def run(options: argparse.Namespace) -> int:
    """Save the cluster. Returns the exit status."""
    state = read_live(options)
    if options.profile:
        with reader.reaching(flags.address(options), options.profile + _ANSWER_SECONDS) as api:
            state = msgspec.structs.replace(state, profile=api.profile(options.profile))
    save(hashed(state) if options.hash_names else state, options.file)
    gpus = sum(len(node.metadata.annotations or {}) > 0 for node in state.nodes)
    print(f"{options.file}: {len(state.nodes)} nodes ({gpus} with records), {len(state.pods)} pods with GPUs")
    return 0


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
    pod_groups: dict[str, list[objects.PodGroup]] = {}  # msgspec copies it
    """By API group; they have the sizes of gangs."""
    profile: read_api_types.Profile | None = None
    """What the extender did, if that was asked for."""


def read_live(options: argparse.Namespace) -> State:
    """Return the live cluster by the flags of a command. Errors as in `read_cluster`.

    Without the extender's URL, the names of the GPU resources are read from the arguments of its Deployment.
    """
    address = flags.address(options)
    names = None
    if address.url:
        with reader.reaching(address) as api:
            names = api.resource_names()
    return read_cluster(flags.kubeconfigs(options), options.context, options.system_namespace, names=names)


def read_cluster(
    kubeconfigs: Sequence[pathlib.Path],
    context: str,
    system_namespace: str,
    *,
    names: requests.ResourceNames | None = None,
    with_quotas: bool = True,
) -> State:
    """Return the state of a live cluster.

    Args:
        kubeconfigs: As of `flags.kubeconfigs`.
        context: Of the kubeconfigs; empty for the current one.
        system_namespace: Of the extender's Deployment.
        names: The names of the GPU resources; None to read them from the Deployment.
        with_quotas: Whether to read quotas.

    Raises:
        CommandFailed: The cluster cannot be reached, or the account may not read it.
    """

    async def read(client: kubernetes.Client) -> State:
        known = names or await installation.resource_names(client, system_namespace)
        return await _read(client, known, with_quotas=with_quotas)

    return api_server.call(kubeconfigs, context, read, rights="list nodes, pods and resourcequotas")


async def _read(client: kubernetes.Client, names: requests.ResourceNames, *, with_quotas: bool) -> State:
    nodes = await list_all(client, "/api/v1/nodes", objects.Node)
    pods = await list_all(client, "/api/v1/pods", objects.Pod)
    quotas = await list_all(client, "/api/v1/resourcequotas", objects.ResourceQuota) if with_quotas else []
    kept = [_trimmed(pod) for pod in pods if from_objects.is_ours(pod, names) and not pod.has_ended]
    others = [_trimmed(pod) for pod in pods if not from_objects.is_ours(pod, names) and _resembles_ours(pod, names)]
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    pod_groups = {api_group: await _pod_groups(client, api_group) for api_group in _GANG_APIS}
    kept_nodes = [_trimmed(node) for node in nodes]
    return State(VERSION, moment, kept_nodes, kept, quotas, names, others or None, pod_groups)


def _resembles_ours(pod: objects.Pod, names: requests.ResourceNames) -> bool:
    containers = (*pod.init_containers, *pod.containers)
    return not pod.has_ended and bool(requests.unknown_words(containers, pod.annotations, names))


async def _pod_groups(client: kubernetes.Client, api_group: str) -> list[objects.PodGroup]:
    """Return the pod groups of an API; empty where the cluster does not have it, or the account may not list them."""
    try:
        path = await discovery.path_of(client, api_group, "podgroups")
        return await list_all(client, path, objects.PodGroup) if path else []
    except (errors.Forbidden, errors.NotFound):
        return []


async def list_all(client: kubernetes.Client, path: str, kind: type[K]) -> list[K]:
    """Return all objects of a kind. Errors as in `kubernetes.Client.pages`."""
    listed = []
    async for page in client.pages(path, _PAGE_SIZE):
        listed += [decoding.json_as(kind, raw) for raw in page.items or ()]
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
        state = decoding.json_as(State, path.read_bytes())
    except OSError as cause:
        raise failures.CommandFailed(f"{path}: {cause.strerror}") from cause
    except msgspec.MsgspecError as cause:
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
    {"name", "namespace", "nodeName", "uid", "nominatedNodeName", "values", "podGroupName", records.NODE, gangs.NAME}
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
