"""The cost of a scrape of the monitor, compared with printing the same samples from a static registry."""

import statistics
import time
from collections.abc import Callable

import prometheus_client
from prometheus_client import core as prometheus_core
from prometheus_client import registry

from bench import report
from device_plugin.driver import gpu_source
from device_plugin.monitor import collector, share_usage
from gpu_sharing.core import identifiers

GPUS, CONTAINERS = 8, 100
TARGET_RATIO = 2.0
GIB = 1 << 30


class _Static(registry.Collector):
    def __init__(self, families: list[prometheus_core.Metric]) -> None:
        self._families = families

    def collect(self) -> list[prometheus_core.Metric]:
        return self._families


def run(quick: bool) -> report.Report:
    """Compare the two in alternating rounds."""
    view = _view()
    gauges = collector.Gauges(lambda: view, compatible=True)
    ours, static = prometheus_core.CollectorRegistry(), prometheus_core.CollectorRegistry()
    ours.register(gauges)
    families = list(gauges.collect())
    static.register(_Static(families))
    samples = sum(len(one.samples) for one in families)
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(3 if quick else 15):
        theirs.append(_seconds(lambda: prometheus_client.generate_latest(static)))
        mine.append(_seconds(lambda: prometheus_client.generate_latest(ours)))
    ratio = statistics.median(mine) / statistics.median(theirs)
    rows = [
        ["a static registry", statistics.median(theirs) * 1e3, 1.0],
        ["the monitor, made anew", statistics.median(mine) * 1e3, ratio],
    ]
    return report.Report(
        f"A scrape of {GPUS} GPUs with {CONTAINERS} containers each",
        ["what", "ms", "ratio"],
        rows,
        {"samples": samples, "repeats": len(mine)},
        [] if ratio <= TARGET_RATIO else [f"{ratio:.2f} times the static registry, and {TARGET_RATIO:g} were wanted"],
    )


def _view() -> collector.MonitorView:
    uuids = [identifiers.GpuUuid(f"GPU-{index:08d}-0000-0000-0000-000000000000") for index in range(GPUS)]
    devices = [
        gpu_source.Device(uuid=uuid, index=index, name="NVIDIA A100-SXM4-80GB", memory_mib=80 * 1024, minor=index)
        for index, uuid in enumerate(uuids)
    ]
    usage = gpu_source.Usage(
        memory_total_bytes=80 * GIB,
        memory_used_bytes=40 * GIB,
        utilization_percent=50.0,
        temperature_celsius=40.0,
        power_watts=300.0,
    )
    now = time.monotonic()
    parts = tuple(
        share_usage.ShareUsage(
            namespace=f"team-{index % 7}",
            pod=f"train-{index}-{place}",
            container="main",
            position=0,
            gpu=uuid,
            memory_bytes=GIB,
            cores_percent=1,
            used_bytes=GIB // 2,
            utilization_percent=3.0,
        )
        for index, uuid in enumerate(uuids)
        for place in range(CONTAINERS)
    )
    samples = {uuid: share_usage.Sample(usage, now) for uuid in uuids}
    return collector.MonitorView(
        node="bench-node", devices=devices, samples=samples, usage=share_usage.NodeUsage(parts, {})
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
