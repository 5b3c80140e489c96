"""How much of a cluster's GPUs a policy fills: the public openb traces, through the extender's own decisions.

`python -m bench.packing --trace default --seeds 42 --policies fragmentation-aware,fgd`. Pods arrive in an order that
the seed shuffles, and none leaves; when all have arrived, further ones are drawn from the same list. A pod that fits on
no node is lost. What counts is the share of all GPUs that is allocated when pods for 100 % of them have arrived.

With `--churn 95` pods also leave: they arrive at random so that they offer 95 % of the GPUs, and each lives for an
exponential time. What counts is the share of the GPU demand that is turned away.

Pods without GPUs are placed by the same policy here, with `binpack` and `spread` by best fit. In a cluster they are
kube-scheduler's.

Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, for the protocol of arrivals.
"""

import argparse
import dataclasses
import heapq
import json
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from bench import published_policies
from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, identifiers, placement, policies
from lab import traces
from scheduler_extender.cluster import from_objects, pending
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.decide.verbs import Verbs
from scheduler_extender.fleet import facts
from scheduler_extender.metrics import Metrics
from scheduler_extender.settings import Settings

FOLDER = pathlib.Path(__file__).with_name("traces")
CHECKPOINTS = (80, 90, 95, 100)
_LAST_PERCENT = 101.0
_LIFETIMES, _WARM_LIFETIMES = 3.0, 1.0
_PRODUCT = ("fragmentation-aware", "binpack", "spread")
POLICIES = (*_PRODUCT, *published_policies.POLICIES)


def trace_names() -> list[str]:
    """Return the traces that there are."""
    return sorted(path.name.split("_")[3].partition(".")[0] for path in FOLDER.glob("openb_pod_list_*"))


def read(name: str) -> traces.Trace:
    """Read a trace by its name."""
    return traces.read(FOLDER / f"openb_pod_list_{name}.csv.gz")


class Field(Protocol):
    """A cluster on which a policy places pods."""

    def place(self, number: int) -> Callable[[], None] | None:
        """Place the pod of this number in the trace. Returns what removes it; None where it fits nowhere."""


class ProductField:
    """The cluster as the extender knows it: every pod passes filter, prioritize and the choice of GPUs at bind."""

    def __init__(self, trace: traces.Trace, policy: str) -> None:
        node_policy = policies.NODE_POLICIES[policy]
        gpu_policy = policies.gpu_policy(policy, "policy")
        self._core = DecisionCore(Settings(node_policy=node_policy, gpu_policy=gpu_policy), Metrics())
        self._by_fragmentation = node_policy.by_fragmentation
        self._verbs = Verbs(self._core)
        for body in trace.nodes:
            self._core.mirror.see_node(msgspec.convert(body, objects.Node, strict=False))
        pods = [msgspec.convert(one.pod, objects.Pod, strict=False) for one in trace.arrivals]
        self._wants_gpu = [bool(one.gpu_milli) for one in trace.arrivals]
        self._templates = [from_objects.pending_pod(pod, self._core.settings.resource_names) for pod in pods]
        self._count = 0

    def place(self, number: int) -> Callable[[], None] | None:
        """See `Field`."""
        self._count += 1
        uid = identifiers.PodUid(f"uid-{self._count}")
        template = self._templates[number]
        assert isinstance(template, pending.PendingPod)
        pod = dataclasses.replace(template, uid=uid, key=identifiers.PodKey(f"trace/{uid}"))
        ledger, packing = self._core.ledger, self._core.placer.packing
        arrays = ledger.settle()
        asked = facts.host_amounts(pod.traits.cpu_thousandths, pod.traits.memory_thousandths)
        feeds = (arrays.host_cpu_free[: arrays.columns] >= asked.cpu_milli) & (
            arrays.host_memory_free[: arrays.columns] >= asked.memory_mib
        )
        names = [arrays.names[column] for column in np.flatnonzero(feeds).tolist()]
        if not self._wants_gpu[number]:
            return self._place_plain(uid, asked, np.flatnonzero(feeds))
        answer = self._verbs.filter(pod, [str(name) for name in names])
        assert answer is not None
        if packing.is_due:
            packing.fit()
        if answer.rejection is not None:
            self._core.pending.remove(uid)
            return None
        best = self._verbs.prioritize(pod, answer.decision.names).best or answer.decision.names[0]
        placed = self._core.placer.place_on(pod, identifiers.NodeName(best), nominations=False)
        assert isinstance(placed, placement.Placement)
        allocated = allocations.by_gpu(pod.request.kinds, placed.shares)
        ledger.assume(facts.BoundPod(uid, pod.key, identifiers.NodeName(best), allocated=allocated, traits=pod.traits))
        self._core.pending.remove(uid)
        return lambda: ledger.remove_pod(uid)

    def _place_plain(
        self, uid: identifiers.PodUid, asked: facts.HostAmounts, columns: Any
    ) -> Callable[[], None] | None:
        if not len(columns):
            return None
        ledger = self._core.ledger
        arrays = ledger.arrays
        values = self._core.placer.packing.plain_values(asked) if self._by_fragmentation else None
        if values is None:  # Best fit, by what stays free of CPU and of GPUs.
            count = arrays.columns
            free_gpus = (arrays.memory_free[:, :count] / np.maximum(arrays.memory_total[:, :count], 1)).sum(0)
            values = -(arrays.host_cpu_free[:count] / published_policies.LARGEST_CPU + free_gpus / 8)
        name = arrays.names[int(columns[values[columns].argmax()])]
        ledger.set_plain(uid, name, asked)
        return lambda: ledger.remove_plain(uid)


@dataclass(slots=True)
class Run:
    """The result of one run."""

    trace: str
    policy: str
    seed: int
    allocated_percent_at: dict[int, float] = field(default_factory=dict)
    """By percent of the GPUs for which pods have arrived."""
    first_refused_percent: float | None = None
    """The load, in percent of the GPUs, at which the first pod with GPUs fitted nowhere."""
    refused: int = 0
    """Pods with GPUs that fitted nowhere."""
    pods: int = 0
    milliseconds: float = 0.0
    """The mean time of a placement."""

    def as_json(self) -> dict[str, Any]:
        """Return what the table is made of."""
        percents = {f"allocated_percent_at_{load}": value for load, value in self.allocated_percent_at.items()}
        others = {name: getattr(self, name) for name in ("first_refused_percent", "refused", "pods", "milliseconds")}
        return {"trace": self.trace, "policy": self.policy, "seed": self.seed, **percents, **others}


def arrivals(trace: traces.Trace, seed: int) -> list[int]:
    """Return the pods in their order of arrival: all of them once, then drawn with replacement."""
    random = np.random.default_rng(seed)
    milli = np.array([one.gpu_milli for one in trace.arrivals])
    order = np.concatenate([random.permutation(len(milli)), random.integers(0, len(milli), 4 * len(milli))])
    within = np.cumsum(milli[order]) <= 10 * _LAST_PERCENT * trace.gpus
    return [int(number) for number in order[within]]


def fill(name: str, policy: str, seed: int, trace: traces.Trace | None = None) -> Run:
    """Let pods arrive until they have requested all GPUs."""
    trace = trace or read(name)
    run, place = Run(name, policy, seed), field_of(trace, policy, seed).place
    capacity, arrived, allocated = 1000 * trace.gpus, 0, 0
    todo, started = list(CHECKPOINTS), time.perf_counter()
    for number in arrivals(trace, seed):
        milli = trace.arrivals[number].gpu_milli
        is_placed = place(number) is not None
        run.pods += 1
        if is_placed:
            allocated += milli
        elif milli:
            run.refused += 1
            if run.first_refused_percent is None:
                run.first_refused_percent = round(100 * arrived / capacity, 2)
        arrived += milli
        while todo and 100 * arrived >= todo[0] * capacity:
            run.allocated_percent_at[todo.pop(0)] = round(100 * allocated / capacity, 2)
    run.milliseconds = round(1000 * (time.perf_counter() - started) / max(run.pods, 1), 3)
    return run


def churn(name: str, policy: str, seed: int, load_percent: float, trace: traces.Trace | None = None) -> float:
    """Let pods come and go. Returns how much of the GPU demand was turned away, in percent."""
    trace = trace or read(name)
    place, draw = field_of(trace, policy, seed).place, np.random.default_rng(seed)
    milli = np.array([one.gpu_milli for one in trace.arrivals])
    each_lifetime = load_percent / 100 * 1000 * trace.gpus / milli.mean()
    first, count = int(each_lifetime), int(each_lifetime * (1 + _LIFETIMES))
    numbers = draw.integers(0, len(milli), count)
    gaps, lives = draw.exponential(1 / each_lifetime, count), draw.exponential(1.0, count)
    now, offered, refused = 0.0, 0, 0
    leaving: list[tuple[float, int, Callable[[], None]]] = []
    for index in range(count):
        now += gaps[index] if index >= first else 0.0
        while leaving and leaving[0][0] <= now:
            heapq.heappop(leaving)[2]()
        remove = place(int(numbers[index]))
        if remove is not None:
            heapq.heappush(leaving, (now + lives[index], index, remove))
        if now >= _WARM_LIFETIMES:
            offered += int(milli[numbers[index]])
            refused += int(milli[numbers[index]]) if remove is None else 0
    return round(100 * refused / offered, 2)


def field_of(trace: traces.Trace, policy: str, seed: int) -> Field:
    """Return an empty cluster under a policy."""
    if policy in _PRODUCT:
        return ProductField(trace, policy)
    return published_policies.PublishedField(trace, policy, seed)


def main() -> int:
    """Run what was requested. Returns the exit status: 1 if a least figure is not reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.packing", description=__doc__.split("\n\n")[0])
    parser.add_argument("--trace", default="default", help=f"which, with commas between: {', '.join(trace_names())}")
    parser.add_argument("--seeds", default="42", help="orders of arrival, with commas between")
    parser.add_argument("--policies", default="fragmentation-aware,fgd", help=f"of {', '.join(POLICIES)}")
    parser.add_argument("--churn", type=float, metavar="PERCENT", help="let pods leave too, at this load")
    parser.add_argument("--least", type=float, help="fail where a mean at 100 percent is below this")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    wanted, seeds = options.policies.split(","), [int(seed) for seed in options.seeds.split(",")]
    for names, known in ((wanted, POLICIES), (options.trace.split(","), trace_names())):
        if unknown := set(names) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    results: list[dict[str, Any]] = []
    for name in options.trace.split(","):
        trace = read(name)
        for policy in wanted:
            for seed in seeds:
                if options.churn:
                    blocked = churn(name, policy, seed, options.churn, trace)
                    results.append({"trace": name, "policy": policy, "seed": seed, "refused_percent": blocked})
                else:
                    results.append(fill(name, policy, seed, trace).as_json())
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    if options.output == "json":
        print(json.dumps({"results": results}))
    else:
        _table(results, "refused_percent" if options.churn else "allocated_percent_at_100")
    return int(options.least is not None and _lowest_mean(results) < options.least)


def _means(results: list[dict[str, Any]], key: str) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for one in results:
        found.setdefault((one["trace"], one["policy"]), []).append(one[key])
    return found


def _lowest_mean(results: list[dict[str, Any]]) -> float:
    return min(float(np.mean(values)) for values in _means(results, "allocated_percent_at_100").values())


def _table(results: list[dict[str, Any]], key: str) -> None:
    print(f"{'trace':14}{'policy':24}{'runs':>5}{key.replace('_', ' '):>30}")
    for (trace, policy), values in _means(results, key).items():
        print(f"{trace:14}{policy:24}{len(values):>5}{np.mean(values):>30.2f}")


if __name__ == "__main__":
    sys.exit(main())
