"""kube-scheduler's extender/v1 JSON, to and from values. The only place that knows its key names.

Go reads these keys in any case and writes them capitalised; we read both and write them capitalised. Names of nodes
stay encoded where the same bytes go back out.

Source: k8s.io/kube-scheduler/extender/v1/types.go, v0.36.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from gpu_sharing.adapters import objects

_NULL = msgspec.Raw(b"null")


class NodeList(msgspec.Struct, gc=False):
    """Whole nodes, sent where the extender is not `nodeCacheCapable`. Items stay raw: they go back as they came."""

    items: list[msgspec.Raw] | None = None


class FilterArgs(msgspec.Struct, gc=False, rename="pascal"):
    """Body of filter and prioritize."""

    pod: objects.Pod | None = None
    nodes: NodeList | None = None
    node_names: msgspec.Raw = _NULL


class _LowerFilterArgs(msgspec.Struct, gc=False, rename="camel"):
    pod: objects.Pod | None = None
    nodes: NodeList | None = None
    node_names: msgspec.Raw = _NULL


class _UidMetadata(msgspec.Struct, gc=False):
    uid: str = ""


class _UidPod(msgspec.Struct, gc=False):
    metadata: _UidMetadata = msgspec.field(default_factory=_UidMetadata)


class _UidArgs(msgspec.Struct, gc=False):
    pod: _UidPod = msgspec.field(default_factory=_UidPod, name="Pod")


class BindArgs(msgspec.Struct, gc=False):
    """Body of a bind call."""

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
    """A victim, named by its UID."""

    uid: str = msgspec.field(default="", name="UID")


class VictimPods(msgspec.Struct, gc=False):
    """Victims on a node as whole pods."""

    pods: list[objects.Pod | None] | None = msgspec.field(default=None, name="Pods")
    num_pdb_violations: int = msgspec.field(default=0, name="NumPDBViolations")


class MetaVictims(msgspec.Struct, gc=False):
    """Victims on a node by UID."""

    pods: list[MetaPod | None] | None = msgspec.field(default=None, name="Pods")
    num_pdb_violations: int = msgspec.field(default=0, name="NumPDBViolations")


class PreemptArgs(msgspec.Struct, gc=False, rename="pascal"):
    """Body of a preempt call."""

    pod: objects.Pod | None = None
    node_name_to_victims: dict[str, VictimPods | None] | None = None
    node_name_to_meta_victims: dict[str, MetaVictims | None] | None = None


class BadRequest(Exception):
    """The body is not what the protocol defines; the text names the place."""


_filter_decoder = msgspec.json.Decoder(FilterArgs)
_lower_filter_decoder = msgspec.json.Decoder(_LowerFilterArgs)
_bind_decoder = msgspec.json.Decoder(BindArgs)
_lower_bind_decoder = msgspec.json.Decoder(_LowerBindArgs)
_preempt_decoder = msgspec.json.Decoder(PreemptArgs)
_node_decoder = msgspec.json.Decoder(objects.Node)
_names_decoder = msgspec.json.Decoder(list[str] | None)
_uid_decoder = msgspec.json.Decoder(_UidArgs)
_MOST_HOSTS = 20_000


def _decode(decoder: "msgspec.json.Decoder[Any]", body: bytes | msgspec.Raw) -> Any:
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
    return args


def demand_identity(pod: objects.Pod) -> None:
    """Check that a pod whose GPUs are decided about has a UID and a name. Go's decoder demands them of no pod.

    Raises:
        BadRequest: It has no UID or no name.
    """
    if not pod.metadata.uid or not pod.metadata.name:
        raise BadRequest("the Pod has no uid or no name")


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
        BadRequest: The names are no list of strings, or an item of the node list is not a node.
    """
    names: list[str] | None = _decode(_names_decoder, args.node_names)
    if names is not None:
        return names
    if args.nodes is None or args.nodes.items is None:
        return []
    return [_decode(_node_decoder, item).metadata.name for item in args.nodes.items]


def uid_of(body: bytes) -> str:
    """The UID of the pod a body is about, without reading the rest; empty if it cannot be read."""
    try:
        return _uid_decoder.decode(body).pod.metadata.uid
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def repeats(body: bytes, names: bytes) -> bool:
    """Whether a body offers exactly the names that a filter answered, in the same bytes.

    kube-scheduler asks prioritize about what filter left, so that most bodies need not be decoded again.
    """
    return body.rstrip().endswith(b'"NodeNames":%b}' % names)


def encode_names(args: FilterArgs, names: list[str], kept: list[str]) -> bytes:
    """A list of names as JSON: the bytes that came where none was left out."""
    return bytes(args.node_names) if kept is names and bytes(args.node_names) != b"null" else orjson.dumps(kept)


def filter_result(
    args: FilterArgs, names: list[str], kept: list[str], kept_json: bytes, refused: Mapping[str, str]
) -> bytes:
    """The answer of filter, in the form the question had.

    Args:
        args: The question.
        names: The offered names.
        kept: Those that fit; `names` itself if all do.
        kept_json: The same, encoded.
        refused: Why, for each that does not fit.
    """
    failed = orjson.dumps(refused) if refused else b"{}"
    if args.nodes is None or bytes(args.node_names) != b"null":
        return b'{"NodeNames":%b,"FailedAndUnresolvableNodes":%b,"Error":""}' % (kept_json, failed)
    fitting = set(kept)
    items = [item for item, name in zip(args.nodes.items or (), names, strict=True) if name in fitting]
    joined = b",".join(bytes(item) for item in items)
    return b'{"Nodes":{"metadata":{},"items":[%b]},"FailedAndUnresolvableNodes":%b,"Error":""}' % (joined, failed)


class Priorities:
    """Encodes answers of prioritize: a score above 0 for at most one host."""

    def __init__(self) -> None:
        self._zero: dict[str, bytes] = {}

    def encode(self, names: list[str], best: str = "", score: int = 0) -> bytes:
        """The answer for some hosts, 0 for all but the best."""
        zero = self._zero
        try:
            hosts = [zero[name] for name in names]
        except KeyError:
            if len(zero) > _MOST_HOSTS:
                zero.clear()
            zero.update((name, orjson.dumps({"Host": name, "Score": 0})) for name in names)
            hosts = [zero[name] for name in names]
        if best:
            hosts[names.index(best)] = orjson.dumps({"Host": best, "Score": score})
        return b"[%b]" % b",".join(hosts)


def victims_of(args: PreemptArgs) -> dict[str, MetaVictims]:
    """Return the victims that kube-scheduler chose on each node, by UID, in whatever form it sent them.

    `null` in place of a node's victims, or of one of them, is none, as Go reads it.
    """
    victims: dict[str, MetaVictims] = {}
    for name, by_uid in (args.node_name_to_meta_victims or {}).items():
        chosen = by_uid or MetaVictims()
        victims[name] = MetaVictims([one for one in chosen.pods or () if one], chosen.num_pdb_violations)
    for name, whole in (args.node_name_to_victims or {}).items():
        given = whole or VictimPods()
        victims[name] = MetaVictims(
            [MetaPod(one.metadata.uid) for one in given.pods or () if one], given.num_pdb_violations
        )
    return victims


def preempt_result(victims: dict[str, MetaVictims]) -> bytes:
    """The answer of preempt: on which nodes eviction helps, and who goes there."""
    return msgspec.json.encode({"NodeNameToMetaVictims": victims})


def error_result(message: str) -> bytes:
    """The answer that fails a filter or bind; kube-scheduler reads it only with status 200."""
    return orjson.dumps({"Error": message})


BOUND = error_result("")
