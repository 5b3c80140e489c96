"""Placement policies that others have published, on a cluster of plain arrays: what ours are compared with.

Each is written anew from its description. A GPU has 1,000 milli; a request for several GPUs needs whole ones.

Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, for `fgd` and `best-fit`; HAMi v2.10,
`pkg/scheduler/policy`, for `hami-like`, which is our model of it: the fullest node, and on it the emptiest GPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_sharing.core import quantities
from lab import traces

Floats = npt.NDArray[np.float64]
_WHOLE = 1000.0
_POPULAR = 0.95
"""The share of pods whose kinds FGD counts."""
LARGEST_CPU = 128_000.0
"""Of any node of the trace, in thousandths of a core."""


class PublishedField:
    """A cluster under one of the policies.

    Equal nodes are ordered by one random order for each seed, as in the published experiments.
    """

    def __init__(self, trace: traces.Trace, policy: str, seed: int) -> None:
        gpus = np.array(trace.gpu_counts)
        self.gpu = np.where(np.arange(gpus.max()) < gpus[:, None], _WHOLE, 0.0)
        self.total = self.gpu.sum(1)
        amounts = [(body["status"]["capacity"]["cpu"], body["status"]["capacity"]["memory"]) for body in trace.nodes]
        self.cpu = np.array([quantities.thousandths(cpu) for cpu, _ in amounts], np.float64)
        self.memory = np.array([quantities.thousandths(memory) / (1000 << 20) for _, memory in amounts])
        self.full_cpu, self.full_memory = self.cpu.copy(), self.memory.copy()
        self.order = np.random.default_rng(seed + 1).permutation(len(gpus))
        self.model = np.array(trace.models)
        self.pods = [_Pod(one) for one in trace.arrivals]
        self.kinds = _Kinds(self.pods, sorted(set(trace.models)))
        self.model_number = np.searchsorted(sorted(set(trace.models)), self.model)
        self._score = POLICIES[policy]
        self._value = self.kinds.value(self.cpu, self.gpu, self.model_number) if policy == "fgd" else None

    def place(self, number: int) -> Callable[[], None] | None:
        """Place the pod of this number in the trace. Returns what removes it; None where it fits nowhere."""
        pod = self.pods[number]
        enough = self.gpu >= pod.milli if pod.gpus else np.ones_like(self.gpu, np.bool_)
        enough &= self.total[:, None] > 0 if pod.gpus else True
        fits = (self.cpu >= pod.cpu) & (self.memory >= pod.memory) & (enough.sum(1) >= pod.gpus)
        if pod.models:
            fits &= np.isin(self.model, list(pod.models))
        nodes = np.flatnonzero(fits)
        if not len(nodes):
            return None
        scores, chosen = self._score(self, pod, nodes, enough[nodes])
        among = np.flatnonzero(scores >= scores.max() - 1e-9)
        best = int(among[self.order[nodes[among]].argmin()])
        node = int(nodes[best])
        if pod.gpus > 1 or pod.milli == _WHOLE:
            rows = np.flatnonzero(self.gpu[node] >= _WHOLE)[: pod.gpus]
        else:
            rows = chosen[best : best + 1] if pod.gpus else np.zeros(0, np.int64)
        self._change(node, rows, pod, -1)
        return lambda: self._change(node, rows, pod, 1)

    def _change(self, node: int, rows: npt.NDArray[np.int64], pod: "_Pod", sign: int) -> None:
        self.cpu[node] += sign * pod.cpu
        self.memory[node] += sign * pod.memory
        self.gpu[node, rows] += sign * pod.milli
        if self._value is not None:
            one = slice(node, node + 1)
            self._value[one] = self.kinds.value(self.cpu[one], self.gpu[one], self.model_number[one])


class _Pod:
    """What a pod of the trace requests."""

    def __init__(self, arrival: traces.Arrival) -> None:
        limits = arrival.pod["spec"]["containers"][0]["resources"]["limits"]
        self.cpu = float(quantities.thousandths(limits["cpu"]))
        self.memory = quantities.thousandths(limits["memory"]) / (1000 << 20)
        self.gpus = int(limits.get("nvidia.com/gpu", 0))
        self.milli = float(arrival.gpu_milli / self.gpus) if self.gpus else 0.0
        models = arrival.pod["metadata"]["annotations"].get("nvidia.com/use-gputype", "")
        self.models = tuple(sorted(filter(None, models.split(","))))


class _Kinds:
    """The popular kinds of requests, for FGD."""

    def __init__(self, pods: list[_Pod], models: list[str]) -> None:
        counts: dict[tuple[Any, ...], int] = {}
        for pod in pods:
            key = (pod.cpu, pod.gpus, pod.milli, pod.models)
            counts[key] = counts.get(key, 0) + 1
        kept, seen = [], 0
        for key, count in sorted(counts.items(), key=lambda item: -item[1]):
            if seen >= _POPULAR * len(pods):
                break
            kept.append((key, count))
            seen += count
        wanting = [(key, count) for key, count in kept if key[1]]
        self.share = np.array([count / seen for _, count in wanting])
        self.cpu = np.array([key[0] for key, _ in wanting])
        self.gpus = np.array([key[1] for key, _ in wanting])
        self.milli = np.array([key[2] for key, _ in wanting])
        self.allowed = np.array([[not key[3] or model in key[3] for key, _ in wanting] for model in models])

    def value(self, cpu: Floats, gpu: Floats, model: npt.NDArray[np.int64]) -> Floats:
        """Minus the fragmented milli of each node."""
        has = gpu[:, :, None] >= self.milli
        able = (has.sum(1) >= self.gpus) & (cpu[:, None] >= self.cpu) & self.allowed[model]
        value: Floats = ((gpu[:, :, None] * has).sum(1) * able) @ self.share - gpu.sum(1)
        return value


_Scores = tuple[Floats, npt.NDArray[np.int64]]


def _fullest(cluster: PublishedField, nodes: npt.NDArray[np.int64], enough: npt.NDArray[np.bool_]) -> Any:
    return np.where(enough, cluster.gpu[nodes], np.inf).argmin(1)


def _best_fit(cluster: PublishedField, pod: _Pod, nodes: Any, enough: Any) -> _Scores:
    left = 0.5 * (cluster.cpu[nodes] - pod.cpu) / LARGEST_CPU
    left += 0.5 * (cluster.gpu[nodes].sum(1) - pod.gpus * pod.milli) / (8 * _WHOLE)
    return -left, _fullest(cluster, nodes, enough)


def _hami_like(cluster: PublishedField, pod: _Pod, nodes: Any, enough: Any) -> _Scores:
    if not pod.gpus:  # kube-scheduler's own choice: the least allocated node.
        free = cluster.cpu[nodes] / cluster.full_cpu[nodes] + cluster.memory[nodes] / cluster.full_memory[nodes]
        return free, np.zeros(len(nodes), np.int64)
    used = 1 - cluster.gpu[nodes].sum(1) / np.maximum(cluster.total[nodes], 1)
    return used, np.where(enough, cluster.gpu[nodes], -1).argmax(1)


def _fgd(cluster: PublishedField, pod: _Pod, nodes: Any, enough: Any) -> _Scores:
    """The node and GPU whose fragmentation grows least; scores are whole numbers, as published."""
    kinds, model, before = cluster.kinds, cluster.model_number[nodes], cluster._value
    assert before is not None
    cpu, gpu = cluster.cpu[nodes] - pod.cpu, cluster.gpu[nodes]
    gains, chosen = np.full(len(nodes), -np.inf), np.zeros(len(nodes), np.int64)
    if pod.gpus == 1 and pod.milli < _WHOLE:
        for row in range(gpu.shape[1]):
            which = np.flatnonzero(enough[:, row])
            after = gpu[which].copy()
            after[:, row] -= pod.milli
            gained = kinds.value(cpu[which], after, model[which]) - before[nodes[which]]
            better = gained > gains[which]
            gains[which[better]], chosen[which[better]] = gained[better], row
    else:
        after = gpu.copy()
        free = after >= _WHOLE
        after[free & (np.cumsum(free, 1) <= pod.gpus)] = 0.0
        gains = kinds.value(cpu, after if pod.gpus else gpu, model) - before[nodes]
    return np.floor(100 / (1 + np.exp(-gains / 1000))), chosen


POLICIES: dict[str, Callable[[PublishedField, _Pod, Any, Any], _Scores]] = {
    "fgd": _fgd,
    "best-fit": _best_fit,
    "hami-like": _hami_like,
}
