"""How far long work is: in the log, and as a ratio."""

import asyncio
import types
from typing import Any

import pytest
from structlog import testing

from device_plugin.node.mig_instances import MigInstances
from gpu_sharing.adapters import metrics_registry
from gpu_sharing.adapters.progress import LINE_SECONDS, Progress
from gpu_sharing.core import identifiers, records


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_long_work_writes_a_line_every_few_seconds_with_what_remains() -> None:
    """A start of minutes must be told from one that hangs."""
    clock = Clock()
    work = Progress("list_pods", clock=clock)
    with testing.capture_logs() as lines:
        work.begin(100)
        for _ in range(50):
            clock.now += 1.0
            work.step()
        work.end()

    said = [one for one in lines if one["event"] == "in progress"]
    assert len(said) == 50 / LINE_SECONDS
    assert (said[0]["work"], said[0]["done"], said[0]["remaining"]) == ("list_pods", 5, 95)
    assert said[0]["seconds_left"] == pytest.approx(95)
    assert [one["event"] for one in lines][-1] == "progress ended"


def test_short_work_writes_none() -> None:
    """Most starts take a second; their log stays short."""
    work = Progress("list_pods", clock=Clock())
    with testing.capture_logs() as lines:
        work.begin(1000)
        list(work.steps(iter([None] * 1000)))
        work.end()
    assert lines == []


def test_the_ratio_is_1_only_where_nothing_is_left_to_do() -> None:
    """What must be done once before the process works is not done before it has begun."""
    work = Progress("count_nodes", is_due=True)
    assert work.ratio == 0
    work.begin()
    assert work.ratio == 0
    work.reach(1, 4)
    assert work.ratio == 0.25
    work.end()
    assert work.ratio == 1
    assert Progress("change_mig_instances").ratio == 1


def test_steps_beyond_the_total_are_not_more_than_all() -> None:
    """A total is an estimate while pages of a list arrive."""
    work = Progress("list_pods")
    work.begin(2)
    list(work.steps(iter([None] * 5)))
    assert work.ratio == 1


def test_the_metric_has_each_kind_of_work_by_its_name() -> None:
    """One panel shows them all."""
    series, work = metrics_registry.Series("extender"), Progress("list_pods", is_due=True)
    series.show_progress(work, Progress("count_nodes"))
    work.begin()
    work.reach(1, 2)
    text = series.exposition()[0].decode()
    assert 'hami_progress_ratio{work="list_pods"} 0.5' in text
    assert 'hami_progress_ratio{work="count_nodes"} 1.0' in text


def test_mig_instances_that_are_queued_count_as_work_that_is_left() -> None:
    """The driver needs seconds for each, one after another, while pods stay in ContainerCreating."""

    async def run() -> list[float]:
        may_go, ratios = asyncio.Semaphore(0), []

        async def create_mig(*where: Any) -> None:
            del where
            await may_go.acquire()

        async def nothing(*any_value: Any) -> None:
            del any_value

        driver: Any = types.SimpleNamespace(create_mig=create_mig)
        health: Any = types.SimpleNamespace(devices=(), read_all=nothing)
        migs = MigInstances(driver=driver, health=health, write=nothing, changed=lambda: None, destroys_all=False)
        gpu = identifiers.GpuUuid("GPU-a")
        tasks = [asyncio.create_task(migs.create(records.MigShare(gpu, "", "1g.10gb", place, 1))) for place in (0, 1)]
        for expected in (0.0, 0.5, 1.0):
            async with asyncio.timeout(60):
                while migs.progress.ratio != expected or (migs.progress.total != 2):
                    await asyncio.sleep(0.001)
            ratios.append(migs.progress.ratio)
            may_go.release()
        await asyncio.gather(*tasks)
        return ratios

    assert asyncio.run(run()) == [0.0, 0.5, 1.0]
