"""Which requests arrive, and how often: what a fragmentation-aware policy plans for.

Counts decay with the number of arrivals, not with time, so that neither a quiet night nor a step of the clock changes
them.
"""

import heapq
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpu_sharing.core import allocations, errors, gpus, requests

HALF_LIFE_ARRIVALS = 5000
"""After so many arrivals an earlier one counts half."""
_MOST_SHAPES = 256
_LONGEST_TEXT = 262_144
_MOST_TYPES, _LONGEST_TYPE = 64, 128
_LARGEST_WEIGHT = 1e9
_SMALLEST_SCALE = 1e-6
_HOST_STEP_MIB = 256
_VERSION = 1


class Shape(NamedTuple):
    """What requests that are alike have in common. `gpus` is 0 for a pod without GPU."""

    gpus: int
    memory_mib: int = 0
    """Of each GPU; 0 where `memory_percent` is set."""
    memory_percent: int = 0
    cores_percent: int = 0
    """Of each GPU; 0 is no limit."""
    use_types: tuple[str, ...] = ()
    nouse_types: tuple[str, ...] = ()
    host_cpu_milli: int = 0
    """CPU of the node, in thousandths of a core."""
    host_memory_mib: int = 0
    """Memory of the node, rounded up to 256 MiB."""


def shape_of(request: requests.PodRequest, cpu_thousandths: int, memory_thousandths: int) -> Shape | None:
    """Return the shape of a request with one container that has GPUs; None for one that has none, or several.

    Args:
        request: What the pod requests.
        cpu_thousandths: Of the node's CPU.
        memory_thousandths: Of the node's memory, in thousandths of a byte.
    """
    asked = [ask for position in allocations.lasting(request.kinds) if (ask := request.containers[position])]
    everything = [ask for ask in request.containers if ask]
    selectors = request.selectors
    if len(asked) != 1 or len(everything) != 1 or selectors.mode == gpus.MIG_MODE or selectors.use_uuids:
        return None
    (ask,) = asked
    mib = -(-memory_thousandths // (1000 << 20))
    return Shape(
        ask.gpus,
        ask.memory_mib,
        ask.memory_percent,
        ask.cores_percent,
        selectors.use_types,
        selectors.nouse_types,
        cpu_thousandths,
        -(-mib // _HOST_STEP_MIB) * _HOST_STEP_MIB,
    )


@dataclass(slots=True)
class RequestMix:
    """How often each shape was requested.

    Attributes:
        weights: The weight of each shape, in units of `_scale`.
        arrivals: How many were counted since the start or the last `decode`.
    """

    weights: dict[Shape, float] = field(default_factory=dict)
    arrivals: int = 0
    _scale: float = 1.0
    """The weight of one arrival now. It grows, so that earlier ones shrink beside it."""

    def count(self, shape: Shape, weight: float = 1.0) -> None:
        """Count an arrival; it weighs as much as all that is counted at this moment."""
        self.weights[shape] = self.weights.get(shape, 0.0) + weight * self._scale
        self.arrivals += 1
        self._scale *= 2 ** (1 / HALF_LIFE_ARRIVALS)
        if len(self.weights) > 2 * _MOST_SHAPES or self._scale > 1 / _SMALLEST_SCALE:
            self._compact()

    def shares(self) -> dict[Shape, float]:
        """Return the share of each shape among all arrivals, 0 to 1, the most frequent first; bounded in number."""
        most = heapq.nlargest(_MOST_SHAPES, self.weights.items(), key=lambda item: item[1])
        total = sum(weight for _, weight in most)
        return {shape: weight / total for shape, weight in most}

    def encode(self) -> str:
        """Return the mix as JSON, for `decode`."""
        total = sum(self.weights.values()) / self._scale
        shapes = [[*shape, round(share * total, 6)] for shape, share in self.shares().items()]
        return json.dumps({"version": _VERSION, "shapes": shapes}, separators=(",", ":"))

    def _compact(self) -> None:
        most = heapq.nlargest(_MOST_SHAPES, self.weights.items(), key=lambda item: item[1])
        self.weights = {shape: weight / self._scale for shape, weight in most}
        self._scale = 1.0


def decode(text: str) -> RequestMix:
    """Return the mix that `RequestMix.encode` wrote.

    Raises:
        CorruptRecord: It is of another version, or no such thing.
    """
    try:
        if len(text) > _LONGEST_TEXT:
            raise ValueError(f"longer than {_LONGEST_TEXT} characters")
        found = json.loads(text)
        if not isinstance(found, Mapping) or found.get("version") != _VERSION:
            raise ValueError(f"not version {_VERSION}")
        weights = dict(_shape(item) for item in found["shapes"][:_MOST_SHAPES])
    except (ValueError, TypeError, KeyError, RecursionError) as cause:
        raise errors.CorruptRecord(f"the request mix cannot be read: {cause}") from cause
    return RequestMix(weights)


def _shape(item: Any) -> tuple[Shape, float]:
    if len(item) != len(Shape._fields) + 1:
        raise ValueError(f"no shape: {item!r:.100}")
    *values, weight = item
    shape = Shape(*values)
    shape = shape._replace(use_types=_types(shape.use_types), nouse_types=_types(shape.nouse_types))
    numbers = (*shape[:4], *shape[6:])
    if not all(type(one) is int and 0 <= one < 1 << 40 for one in numbers) or shape.gpus > gpus.MOST_GPUS:
        raise ValueError(f"no shape: {item!r:.100}")
    if type(weight) not in (int, float) or not 0 < weight <= _LARGEST_WEIGHT:
        raise ValueError(f"no weight: {weight!r:.100}")
    return shape, float(weight)


def _types(value: Any) -> tuple[str, ...]:
    if len(value) > _MOST_TYPES or not all(isinstance(one, str) and len(one) <= _LONGEST_TYPE for one in value):
        raise ValueError("no list of GPU types")
    return tuple(value)
