"""The annotations that carry records between processes: encode and decode.

Byte-compatible with HAMi v2.10, so that its plugin's inventories are read here, and pods that it placed are counted. A
record that does not decode raises an error; it is never treated as empty.

Source: HAMi v2.10 `pkg/device/devices.go` (MarshalNodeDevices, EncodePodDevices) and its docs/develop/protocol.md.
"""

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from gpu_sharing.core import allocations, errors, gpus, identifiers, mig, topology, version

INVENTORY = "hami.io/node-nvidia-register"
AGENT = "hami.io/agent"
AGENT_NAME = "hami-py"
OUR_AGENT = f"{AGENT_NAME}/{version.VERSION}"
"""The name of our device plugin."""
CORDON = "hami.io/device-cordon"
RELEASE = "hami.io/gpu-release"
RELEASED = "released: the device plugin does not hold the GPU"
"""The cause in a GPU's health when it can be reset."""
MIG_MADE = "hami.io/mig-made"
NODE = "hami.io/vgpu-node"
TIME = "hami.io/vgpu-time"
ALLOCATED = "hami.io/vgpu-devices-allocated"
TO_ALLOCATE = "hami.io/vgpu-devices-to-allocate"
BIND_PHASE = "hami.io/bind-phase"
BIND_TIME = "hami.io/bind-time"
DECISION = "hami.io/decision-id"
MIG_ALLOCATIONS = "hami.io/vgpu-mig-allocations"
HOLD = "hami.io/vgpu-hold"
OF_PODS = frozenset({NODE, TIME, ALLOCATED, TO_ALLOCATE, BIND_PHASE, BIND_TIME, DECISION, MIG_ALLOCATIONS, HOLD})
"""Annotations that our processes write on a pod; its owner writes the others."""
SCORE = "hami.io/node-nvidia-score"
HEALTH = "hami.io/gpu-health"
PROBLEMS = "hami.io/node-problems"
ACCELERATOR_LABEL = ("accelerator", "nvidia")
"""Annotation of a node whose device plugin has published its GPUs."""
PHASE_ALLOCATING = "allocating"
PHASE_SUCCESS = "success"
PHASE_FAILED = "failed"

_VENDOR = "NVIDIA"
_LARGEST = gpus.MOST_MEMORY_MIB
_MOST_CORES_PERCENT = 100_000
_LATEST_UNIX_SECONDS = 2**40
_MOST_TYPES = 8
"""The limit of GPU models in one node; each model needs a series of metrics and a pass over all nodes."""
_MOST_BYTES = 256 * 1024
"""The API server's own limit for all annotations of an object."""
_LONGEST_CAUSE = 300
_MOST_PROBLEMS = 32
_MOST_MADE = gpus.MOST_GPUS * mig.MOST_SLICES
_CODE = re.compile(r"[A-Z][A-Z0-9_]{2,63}")
_UUID = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_NUMBER = re.compile(r"[0-9]{1,10}")
_PROFILE = re.compile(r"[1-9]g\.[1-9][0-9]{0,3}gb(\.[a-z]{1,8})?")
_MOST_PROFILES = 32
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def encode_inventory(inventory: Sequence[gpus.Gpu]) -> str:
    """Return the node annotation that advertises GPUs; zero values are omitted, as readers expect."""
    return json.dumps([_inventory_item(gpu) for gpu in inventory], separators=(",", ":"))


def _inventory_item(gpu: gpus.Gpu) -> dict[str, object]:
    item: dict[str, object] = {
        "id": gpu.uuid, "index": gpu.index, "count": gpu.slots, "devmem": gpu.memory_mib, "devcore": gpu.cores_percent,
        "type": gpu.type, "numa": gpu.numa, "mode": gpu.mode, "health": gpu.healthy,
        "migProfiles": [
            {
                "name": one.name, "memoryMB": one.memory_mib, "core": one.cores_percent,
                "placements": [{"start": place.start, "size": place.size} for place in one.places],
            }
            for one in gpu.mig_profiles
        ],
    }  # fmt: skip
    return {key: value for key, value in item.items() if value}


def decode_inventory(text: str) -> tuple[gpus.Gpu, ...]:
    """Return the GPUs that a node advertises, by index, then UUID.

    Reads the JSON of current plugins and the older colon-separated records.

    Raises:
        CorruptRecord: The record is neither, a number in it is out of range, or a UUID occurs twice.
    """
    if len(text) > _MOST_BYTES:
        raise errors.CorruptRecord(f"{INVENTORY} is larger than {_MOST_BYTES} bytes")
    items = _json_items(text) if text.lstrip().startswith("[") else _legacy_items(text)
    if len(items) > gpus.MOST_GPUS:
        raise errors.CorruptRecord(f"{INVENTORY} names {len(items)} GPUs; a node has at most {gpus.MOST_GPUS}")
    gpus_read = tuple(sorted((_gpu(item) for item in items), key=lambda gpu: (gpu.index, gpu.uuid)))
    types = {gpu.type for gpu in gpus_read}
    if len(types) > _MOST_TYPES:
        raise errors.CorruptRecord(f"{INVENTORY} names {len(types)} types of GPUs; a node has at most {_MOST_TYPES}")
    if len({gpu.uuid for gpu in gpus_read}) != len(gpus_read):
        raise errors.CorruptRecord(f"{INVENTORY} names a GPU twice")
    return gpus_read


def _json_items(text: str) -> list[Mapping[str, object]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise errors.CorruptRecord(f"{INVENTORY} is not JSON: {cause}") from cause
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise errors.CorruptRecord(f"{INVENTORY} is not a list of objects")
    return items


def _legacy_items(text: str) -> list[Mapping[str, object]]:
    """`uuid,count,mem,core,type,numa,health[,index,mode]` per GPU, each ended by a colon."""
    items: list[Mapping[str, object]] = []
    for position, record in enumerate(part for part in text.strip().split(":") if part):
        fields = record.split(",")
        numbers = [*fields[1:4], fields[5] if len(fields) > 5 else "", fields[7] if len(fields) > 7 else str(position)]
        if not 7 <= len(fields) <= 9 or not all(_NUMBER.fullmatch(number) for number in numbers):
            raise errors.CorruptRecord(f"{INVENTORY}: {record[:60]!r} is not uuid,count,mem,core,type,numa,health")
        count, memory, core, numa, index = map(int, numbers)
        items.append({
            "id": fields[0], "count": count, "devmem": memory, "devcore": core, "type": fields[4], "numa": numa,
            "health": fields[6] == "true", "index": index, "mode": fields[8] if len(fields) > 8 else "",
        })  # fmt: skip
    return items


def _gpu(item: Mapping[str, object]) -> gpus.Gpu:
    def number(key: str, largest: int = _LARGEST) -> int:
        try:
            return _whole(item.get(key, 0), 0, largest)
        except ValueError as cause:
            raise errors.CorruptRecord(f"{INVENTORY}: {key}: {cause}") from cause

    def word(key: str) -> str:
        value = item.get(key, "")
        if not isinstance(value, str) or len(value) > 128:
            raise errors.CorruptRecord(f"{INVENTORY}: {key} is not a word")
        return value

    uuid = word("id")
    if not _UUID.fullmatch(uuid):
        raise errors.CorruptRecord(f"{INVENTORY}: {uuid[:40]!r} is not the UUID of a GPU")
    health = item.get("health", False)
    if not isinstance(health, bool):
        raise errors.CorruptRecord(f"{INVENTORY}: health is {str(health)[:40]!r}, not true or false")
    return gpus.Gpu(
        uuid=identifiers.GpuUuid(uuid),
        index=number("index", 4096),
        memory_mib=number("devmem"),
        cores_percent=number("devcore", _MOST_CORES_PERCENT),
        slots=number("count", gpus.MOST_SLOTS),
        type=word("type"),
        numa=_numa(item.get("numa", 0)),
        mode=word("mode"),
        healthy=health,
        mig_profiles=_profiles(item.get("migProfiles") or []),
    )


def _profiles(items: Any) -> tuple[mig.Profile, ...]:
    """Return the MIG profiles of a GPU.

    Profiles with extra engines (`1g.10gb+me`) are omitted: a GPU has just one of them, and it cannot be requested.
    """
    try:
        if len(items) > _MOST_PROFILES:
            raise ValueError(f"{len(items)} profiles are too many")
        return tuple(
            mig.Profile(
                _profile_name(item["name"]),
                _whole(item["memoryMB"], 0, _LARGEST),
                _whole(item.get("core", 0), 0, 100),
                tuple(
                    mig.Slices(
                        _whole(place.get("start", 0), 0, mig.MOST_SLICES - 1),
                        _whole(place["size"], 0, mig.MOST_SLICES) or 1,
                    )
                    for place in item["placements"][:_MOST_PROFILES]
                ),
            )
            for item in items
            if "+" not in item["name"]
        )
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        raise errors.CorruptRecord(f"{INVENTORY}: migProfiles cannot be read: {cause}") from cause


def _profile_name(value: Any) -> str:
    if not isinstance(value, str) or not _PROFILE.fullmatch(value):
        raise ValueError(f"{str(value)[:40]!r} is not the name of a profile")
    return value


def _numa(value: object) -> int:
    """Return the NUMA node; drivers report -1 if there is none."""
    try:
        return _whole(value, -1, 4096)
    except ValueError as cause:
        raise errors.CorruptRecord(f"{INVENTORY}: numa: {cause}") from cause


def _whole(value: object, least: int, most: int) -> int:
    """Return a number of a JSON record; every number is bounded here, before it reaches an array or a loop.

    Raises:
        ValueError: It is not a whole number in that range.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number from {least} to {most}")
    return value


def decode_links(text: str, inventory: Sequence[gpus.Gpu]) -> tuple[topology.Links, str]:
    """Return the link scores between a node's GPUs, and the error of the record, or an empty string.

    A pair that the record scores differently in the two directions counts as not linked, as in HAMi; a record that does
    not decode counts as none. Links are a preference, so neither excludes the node.

    Args:
        text: The value of `hami.io/node-nvidia-score`; GPUs that the node does not advertise are ignored.
        inventory: The node's GPUs in row order.
    """
    if not text:
        return (), ""
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError("too large")
        scores = {item["uuid"]: dict(item.get("score") or {}) for item in json.loads(text)}
        values = [value for peers in scores.values() for value in peers.values()]
        if not all(type(value) is int and 0 <= value <= _LARGEST for value in values):
            raise ValueError("a score is no number")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        return (), f"{SCORE} cannot be read: {cause}"[:200]
    uuids = [gpu.uuid for gpu in inventory]

    def score(uuid: str, other: str) -> int:
        return 0 if uuid == other else int(scores.get(uuid, {}).get(other, 0))

    uneven = next((pair for pair in itertools.combinations(uuids, 2) if score(*pair) != score(*pair[::-1])), None)
    matrix = tuple(
        tuple(score(one, other) if score(one, other) == score(other, one) else 0 for other in uuids) for one in uuids
    )
    problem = f"{SCORE}: {uneven[0]} and {uneven[1]} disagree about their link" if uneven else ""
    return (matrix if any(map(any, matrix)) else ()), problem


def decode_cordon(text: str) -> frozenset[identifiers.GpuUuid]:
    """Return the GPUs that an administrator has cordoned, or released for a reset. Unknown UUIDs are harmless."""
    return frozenset(identifiers.GpuUuid(part.strip()) for part in text.split(",") if part.strip())


def decode_unhealthy_reasons(text: str) -> dict[identifiers.GpuUuid, str]:
    """Return why GPUs are not healthy, by the node's device plugin; unreadable entries are ignored."""
    try:
        items = json.loads(text).items() if text and len(text) <= _MOST_BYTES else ()
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {
        identifiers.GpuUuid(uuid): cause[:_LONGEST_CAUSE]
        for uuid, one in items
        if isinstance(one, dict) and isinstance(cause := one.get("cause"), str) and cause
    }


def encode_problems(sentences: Mapping[str, str]) -> str:
    """Return the annotation with the problems of a node's setup: sentences by error code."""
    kept = sorted(sentences.items())[:_MOST_PROBLEMS]
    return json.dumps({code: text[:_LONGEST_CAUSE] for code, text in kept}, separators=(",", ":"))


def decode_problems(text: str) -> dict[str, str]:
    """Return the problems of a node's setup, by error code; unreadable entries are ignored."""
    try:
        items = json.loads(text).items() if text and len(text) <= _MOST_BYTES else ()
    except (ValueError, AttributeError, RecursionError):
        return {}
    problems = {
        code: sentence[:_LONGEST_CAUSE]
        for code, sentence in items
        if _CODE.fullmatch(code) and isinstance(sentence, str) and sentence
    }
    return dict(sorted(problems.items())[:_MOST_PROBLEMS])


class MadeInstance(NamedTuple):
    """A MIG instance that the node's device plugin created, or is about to create, by its placement."""

    gpu_uuid: identifiers.GpuUuid
    profile: str
    start: int
    """First memory slice."""
    size: int
    """Memory slices."""


def encode_made(instances: Collection[MadeInstance]) -> str:
    """Return the node annotation by which a restarted plugin recognizes its own MIG instances."""
    return json.dumps([list(one) for one in sorted(instances)], separators=(",", ":"))


def decode_made(text: str) -> frozenset[MadeInstance]:
    """Return the MIG instances that the node's plugin created; unreadable entries are ignored, so never destroyed."""
    try:
        items = json.loads(text) if text and len(text) <= _MOST_BYTES else []
    except (ValueError, RecursionError):
        return frozenset()
    listed = items[:_MOST_MADE] if isinstance(items, list) else []
    return frozenset(one for one in map(_made, listed) if one is not None)


def _made(item: Any) -> MadeInstance | None:
    try:
        uuid, profile, start, size = item
        if not _UUID.fullmatch(uuid):
            return None
        slices = _whole(start, 0, mig.MOST_SLICES - 1), _whole(size, 1, mig.MOST_SLICES)
        return MadeInstance(identifiers.GpuUuid(uuid), _profile_name(profile), *slices)
    except (ValueError, TypeError):
        return None


def is_our_agent(text: str | None) -> bool:
    """Return whether this project's device plugin serves the node, by `hami.io/agent`."""
    name, slash, version = (text or "").partition("/")
    return name == AGENT_NAME and bool(slash and version)


def encode_shares(shares: allocations.Shares) -> str:
    """Return the record of a pod: `UUID,NVIDIA,MiB,cores:` per GPU, `;` after each container."""
    return "".join(
        "".join(f"{share.uuid},{_VENDOR},{share.memory_mib},{share.cores_percent}:" for share in container) + ";"
        for container in shares
    )


def decode_shares(text: str, asking: Sequence[bool]) -> allocations.Shares:
    """Return the shares of each container.

    HAMi omits the empty entry of some containers without GPU; then the entries belong, in order, to the containers
    that request one.

    Args:
        text: The annotation's value.
        asking: One per container, init containers first: whether it requests a GPU.

    Raises:
        CorruptRecord: The record does not parse, or does not match the containers.
    """
    if len(text) > _MOST_BYTES:
        raise errors.CorruptRecord(f"{ALLOCATED} is larger than {_MOST_BYTES} bytes")
    entries = text.split(";")
    if entries and not entries[-1].strip():
        entries.pop()
    decoded = [tuple(_decode_share(part) for part in entry.split(":") if part.strip()) for entry in entries]
    if len(decoded) == len(asking):
        return tuple(decoded)
    filled = [shares for shares in decoded if shares]
    if len(filled) != sum(asking):
        raise errors.CorruptRecord(
            f"{ALLOCATED} has {len(filled)} containers with GPUs, the pod has {sum(asking)} that request one"
        )
    rest = iter(filled)
    return tuple(next(rest) if asks else () for asks in asking)


def encode_instances(shares: allocations.Shares) -> str:
    """Return the MIG instances of a pod's shares, as a JSON list; empty if there are none."""
    items = [
        {
            "containerIndex": position, "deviceIndex": number, "gpuUUID": share.uuid,
            "profile": share.instance.profile,
            "placement": {"start": share.instance.start, "size": share.instance.size},
        }
        for position, container in enumerate(shares)
        for number, share in enumerate(container)
        if share.instance
    ]  # fmt: skip
    return json.dumps(items, separators=(",", ":")) if items else ""


def decode_instances(text: str, shares: allocations.Shares) -> allocations.Shares:
    """Return the shares with their MIG instances from the pod's other record.

    Raises:
        CorruptRecord: The record does not parse, or names a share that does not exist.
    """
    if not text:
        return shares
    filled = [list(container) for container in shares]
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError("too large")
        for item in json.loads(text):
            mig_share = _mig_share(item)
            if not mig_share.size:
                raise ValueError("no such slices")
            position = _whole(item.get("containerIndex", 0), 0, len(filled) - 1)
            share = filled[position][number := _whole(item.get("deviceIndex", 0), 0, len(filled[position]) - 1)]
            if share.uuid != mig_share.gpu_uuid:
                raise ValueError("another GPU")
            filled[position][number] = share._replace(
                instance=mig.Instance(mig_share.profile, mig_share.start, mig_share.size)
            )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as cause:
        raise errors.CorruptRecord(f"{MIG_ALLOCATIONS} cannot be read: {cause}") from cause
    return tuple(map(tuple, filled))


def legible_shares(text: str) -> tuple[allocations.Share, ...]:
    """Return the readable shares of a record that does not decode as a whole.

    They are counted; the node's other GPUs get no new allocations, because the unreadable rest may name any of them.
    """
    shares: list[allocations.Share] = []
    for part in re.split("[:;]", text[:_MOST_BYTES]):
        try:
            shares.append(_decode_share(part))
        except errors.CorruptRecord:
            continue
    return tuple(shares)


def _decode_share(part: str) -> allocations.Share:
    fields = [field.strip() for field in part.split(",")]
    if len(fields) != 4:
        raise errors.CorruptRecord(f"{ALLOCATED}: {part[:80]!r} is not UUID,vendor,MiB,cores")
    uuid = fields[0].partition("[")[0]  # HAMi marks the MIG instance it used in brackets.
    if not _UUID.fullmatch(uuid) or not all(_NUMBER.fullmatch(number) and number.isascii() for number in fields[2:]):
        raise errors.CorruptRecord(f"{ALLOCATED}: {part[:80]!r} is not UUID,vendor,MiB,cores")
    memory_mib, cores = int(fields[2]), int(fields[3])
    if memory_mib > _LARGEST or cores > _MOST_CORES_PERCENT:
        raise errors.CorruptRecord(f"{ALLOCATED}: {part[:80]!r} is larger than any GPU")
    return allocations.Share(identifiers.GpuUuid(uuid), memory_mib, cores)


def pod_annotations(
    shares: allocations.Shares, node: identifiers.NodeName, unix_seconds: int, decision: identifiers.DecisionId
) -> dict[str, str]:
    """Return the annotations that a Binding merges into the pod: its record and its phase."""
    record, instances = encode_shares(shares), encode_instances(shares)
    return {
        NODE: node,
        TIME: str(unix_seconds),
        ALLOCATED: record,
        TO_ALLOCATE: record,
        BIND_PHASE: PHASE_ALLOCATING,
        BIND_TIME: str(unix_seconds),
        DECISION: decision,
        **({MIG_ALLOCATIONS: instances} if instances else {}),
    }


def pod_labels(node: identifiers.NodeName) -> dict[str, str]:
    """Return the label that a Binding merges into the pod; none if the node's name is too long for a label's value."""
    return {NODE: node} if _LABEL_VALUE.fullmatch(node) else {}


def unsafe_metadata(annotations: Mapping[str, str], already_bytes: int) -> str:
    """Return why the API server would call the pod invalid after this Binding, or an empty string.

    It does not check the metadata of a Binding, and would then refuse every update of the pod's status.

    Args:
        annotations: The annotations of the Binding.
        already_bytes: Size of the annotations that the pod has.
    """
    size = already_bytes + sum(len(key) + len(value.encode()) for key, value in annotations.items())
    if size > _MOST_BYTES:
        return f"the pod's annotations would have {size} bytes, more than {_MOST_BYTES}"
    unprintable = [key for key, value in annotations.items() if not value.isprintable()]
    return f"the value of {unprintable[0]} is not printable" if unprintable else ""


LONGEST_HOLD_SECONDS = 600
"""Seconds for which GPUs are reserved for a pod whose victims do not end."""


class Hold(NamedTuple):
    """GPUs that are reserved for a pending pod, while its victims terminate."""

    node: identifiers.NodeName
    gpus: frozenset[identifiers.GpuUuid]
    until: int
    """Unix seconds at which the hold ends."""


def encode_hold(hold: Hold) -> str:
    """Return the annotation of a hold."""
    return json.dumps({"node": hold.node, "gpus": sorted(hold.gpus), "until": hold.until}, separators=(",", ":"))


def decode_hold(text: str) -> Hold | None:
    """Return the hold of a pod; None if there is none, or if it does not decode, which then reserves nothing."""
    if not text:
        return None
    try:
        item = json.loads(text) if len(text) <= _MOST_BYTES else {}
        uuids = [uuid for uuid in item["gpus"] if _UUID.fullmatch(uuid)]
        if not isinstance(item["node"], str):
            return None
        until = _whole(item["until"], 0, _LATEST_UNIX_SECONDS)
        return Hold(identifiers.NodeName(item["node"]), frozenset(map(identifiers.GpuUuid, uuids)), until)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class MigShare(NamedTuple):
    """One MIG instance of a container, by the pod's record."""

    gpu_uuid: identifiers.GpuUuid
    mig_uuid: str
    """The UUID of an existing instance; empty if it must be created."""
    profile: str
    start: int
    """First memory slice of the instance."""
    size: int
    """Its memory slices."""


def mig_shares(text: str, container_index: int) -> tuple[MigShare, ...]:
    """Return the MIG instances of one container by the pod's record, in the order of its GPUs.

    Args:
        text: The value of `hami.io/vgpu-mig-allocations`; a value that does not decode has none.
        container_index: Position of the container, init containers first.
    """
    try:
        items = json.loads(text) if text and len(text) <= _MOST_BYTES else []
        mine = [item for item in items if item.get("containerIndex", 0) == container_index]
        return tuple(
            _mig_share(item)
            for item in sorted(mine, key=lambda item: _whole(item.get("deviceIndex", 0), 0, gpus.MOST_GPUS))
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        return ()


def _mig_share(item: Mapping[str, Any]) -> MigShare:
    placement = item.get("placement") or {}
    return MigShare(
        identifiers.GpuUuid(str(item.get("gpuUUID", ""))),
        str(item.get("migUUID", "")),
        str(item.get("profile", "")),
        _whole(placement.get("start", 0), 0, mig.MOST_SLICES - 1),
        _whole(placement.get("size", 0), 0, mig.MOST_SLICES),
    )
