"""kube-scheduler's extender/v1 JSON, to and from values. The only place that knows its key names.

Go reads these keys in any case and writes them capitalised; we read both and write them capitalised. Names of nodes
stay encoded where the same bytes go back out.

Source: k8s.io/kube-scheduler/extender/v1/types.go, v0.36.
"""

from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import objects


class NodeList(msgspec.Struct, gc=False):
    """Whole nodes, sent where the extender is not `nodeCacheCapable`. Items stay raw: they go back as they came."""

    items: list[msgspec.Raw] | None = None


class FilterArgs(msgspec.Struct, gc=False, rename="pascal"):
    """Body of filter and prioritize."""

    pod: objects.Pod | None = None
    nodes: NodeList | None = None
    node_names: list[str] | None = None


class _LowerFilterArgs(msgspec.Struct, gc=False, rename="camel"):
    pod: objects.Pod | None = None
    nodes: NodeList | None = None
    node_names: list[str] | None = None


class BindArgs(msgspec.Struct, gc=False):
    """Body of bind."""

    pod_name: str = msgspec.field(default="", name="PodName")
    pod_namespace: str = msgspec.field(default="", name="PodNamespace")
    pod_uid: str = msgspec.field(default="", name="PodUID")
    node: str = msgspec.field(default="", name="Node")


class _LowerBindArgs(msgspec.Struct, gc=False):
    pod_name: str = msgspec.field(default="", name="podName")
    pod_namespace: str = msgspec.field(default="", name="podNamespace")
    pod_uid: str = msgspec.field(default="", name="podUID")
    node: str = msgspec.field(default="", name="node")


class MetaPod(msgspec.Struct, gc=False):
    """A victim by UID."""

    uid: str = msgspec.field(default="", name="UID")


class VictimPods(msgspec.Struct, gc=False):
    """Victims on a node as whole pods."""

    pods: list[objects.Pod] | None = msgspec.field(default=None, name="Pods")
    num_pdb_violations: int = msgspec.field(default=0, name="NumPDBViolations")


class MetaVictims(msgspec.Struct, gc=False):
    """Victims on a node by UID."""

    pods: list[MetaPod] | None = msgspec.field(default=None, name="Pods")
    num_pdb_violations: int = msgspec.field(default=0, name="NumPDBViolations")


class PreemptArgs(msgspec.Struct, gc=False, rename="pascal"):
    """Body of preempt."""

    pod: objects.Pod | None = None
    node_name_to_victims: dict[str, VictimPods] | None = None
    node_name_to_meta_victims: dict[str, MetaVictims] | None = None


class BadRequest(Exception):
    """The body is not what the protocol defines; the text says where."""


_filter_decoder = msgspec.json.Decoder(FilterArgs)
_lower_filter_decoder = msgspec.json.Decoder(_LowerFilterArgs)
_bind_decoder = msgspec.json.Decoder(BindArgs)
_lower_bind_decoder = msgspec.json.Decoder(_LowerBindArgs)
_preempt_decoder = msgspec.json.Decoder(PreemptArgs)
_node_decoder = msgspec.json.Decoder(objects.Node)


def _decode(decoder: "msgspec.json.Decoder[Any]", body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise BadRequest(f"the body is not ExtenderArgs JSON: {cause}") from cause


def decode_filter(body: bytes) -> FilterArgs:
    """Read the body of filter or prioritize.

    Raises:
        BadRequest: It is malformed, or carries no pod, or neither nodes nor names.
    """
    args: FilterArgs = _decode(_filter_decoder, body)
    if args.pod is None:
        lower: _LowerFilterArgs = _decode(_lower_filter_decoder, body)
        args = FilterArgs(lower.pod, lower.nodes, lower.node_names)
    if args.pod is None:
        raise BadRequest("the body carries no Pod")
    if not args.pod.metadata.uid or not args.pod.metadata.name:
        raise BadRequest("the Pod has no uid or no name")
    return args


def decode_bind(body: bytes) -> BindArgs:
    """Read the body of bind.

    Raises:
        BadRequest: It is malformed, or a field is missing.
    """
    args: BindArgs = _decode(_bind_decoder, body)
    if not args.pod_uid:
        lower: _LowerBindArgs = _decode(_lower_bind_decoder, body)
        args = BindArgs(lower.pod_name, lower.pod_namespace, lower.pod_uid, lower.node)
    for field in ("pod_name", "pod_namespace", "pod_uid", "node"):
        value = getattr(args, field)
        if not value:
            raise BadRequest(f"{field} is empty")
        if "/" in value or len(value) > 253 or not value.isprintable():
            raise BadRequest(f"{field} is not a name: {value[:60]!r}")
    return args


def decode_preempt(body: bytes) -> PreemptArgs:
    """Read the body of preempt.

    Raises:
        BadRequest: It is malformed.
    """
    args: PreemptArgs = _decode(_preempt_decoder, body)
    if args.pod is None:
        raise BadRequest("the body carries no Pod")
    return args


def names_of(args: FilterArgs) -> list[str]:
    """The offered nodes by name, in the order sent; none for `NodeNames: null` without nodes.

    Raises:
        BadRequest: An item of the node list is not a node.
    """
    if args.node_names is not None:
        return args.node_names
    if args.nodes is None or args.nodes.items is None:
        return []
    return [_decode(_node_decoder, bytes(item)).metadata.name for item in args.nodes.items]


def filter_result(args: FilterArgs, fitting: list[bool] | None, names: list[str], refused: dict[str, str]) -> bytes:
    """The answer of filter, in the form the question had.

    Args:
        args: The question.
        fitting: One per name; None if all fit.
        names: The offered names.
        refused: Why, for each that does not fit.
    """
    result: dict[str, Any] = {"FailedAndUnresolvableNodes": refused}
    if args.nodes is not None and args.node_names is None:
        items = args.nodes.items or []
        kept = items if fitting is None else [item for item, fits in zip(items, fitting, strict=True) if fits]
        return msgspec.json.encode({**result, "Nodes": {"metadata": {}, "items": kept}, "Error": ""})
    result["NodeNames"] = names if fitting is None else [n for n, fits in zip(names, fitting, strict=True) if fits]
    result["Error"] = ""
    return orjson.dumps(result)


def priorities(names: list[str], score_of: dict[str, int]) -> bytes:
    """The answer of prioritize: every host, 0 where `score_of` says nothing."""
    return orjson.dumps([{"Host": name, "Score": score_of.get(name, 0)} for name in names])


def preempt_result(args: PreemptArgs) -> bytes:
    """The victims that kube-scheduler chose, by UID, as it wants them back."""
    victims: dict[str, MetaVictims] = dict(args.node_name_to_meta_victims or {})
    for name, chosen in (args.node_name_to_victims or {}).items():
        pods = [MetaPod(pod.metadata.uid) for pod in chosen.pods or ()]
        victims[name] = MetaVictims(pods, chosen.num_pdb_violations)
    return msgspec.json.encode({"NodeNameToMetaVictims": victims})


def error_result(message: str) -> bytes:
    """The answer that fails a filter or bind; kube-scheduler reads it only with status 200."""
    return orjson.dumps({"Error": message})


BOUND = error_result("")
