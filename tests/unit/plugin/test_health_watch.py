"""What the watch makes of a driver that comes, goes and hides a GPU."""

import asyncio
from collections.abc import Sequence

from device_plugin import metrics
from device_plugin.driver import driver_threads, gpu_source, health_watch
from gpu_sharing.core import health, identifiers
from gpu_sharing.core.xids import Need
from lab import gpu_nodes

A, B = identifiers.GpuUuid("GPU-a"), identifiers.GpuUuid("GPU-b")


class Driver(gpu_nodes.FakeGpus):
    """Made-up GPUs whose driver can be taken away."""

    away = False

    def devices(self) -> Sequence[gpu_source.Device]:
        if self.away:
            raise gpu_source.DriverMissing("not loaded")
        return super().devices()


def watch(driver: Driver) -> tuple[health_watch.HealthWatch, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    rules = health.Rules(hold_seconds=0.0)
    found = health_watch.HealthWatch(
        driver=driver_threads.DriverThreads(lambda: driver, 1.0), rules=rules, boot_id="b1", metrics=metrics.Metrics(),
        changed=lambda device, before, after: told.append((device.uuid, after.cause)),
    )  # fmt: skip
    return found, told


def device(uuid: identifiers.GpuUuid, index: int) -> gpu_source.Device:
    return gpu_source.Device(uuid, index, "T", 1000, index)


def test_a_gpu_that_the_driver_hides_is_lost_and_stays_listed() -> None:
    """Its pods still hold it, so it must not vanish from the books."""
    driver = Driver([device(A, 0), device(B, 1)])
    found, told = watch(driver)

    async def story() -> None:
        assert await found.read_all()
        del driver.listed[0]
        assert not await found.read_all()

    asyncio.run(story())

    assert [one.uuid for one in found.devices] == [A, B]
    assert told == [(A, "the GPU has fallen off the bus")]
    assert found.states[A].need is Need.REBOOT
    assert found.states[B].available


def test_a_driver_that_is_unloaded_makes_its_gpus_suspect_until_it_is_back() -> None:
    """An upgrade of the driver must not demand a reboot."""
    driver = Driver([device(A, 0)])
    found, told = watch(driver)

    async def story() -> None:
        await found.read_all()
        driver.away = True
        await found.read_all()
        assert (found.states[A].state, found.states[A].need) == (health.State.SUSPECT, Need.NOTHING)
        driver.away = False
        await found.read_all()

    asyncio.run(story())

    assert found.states[A].available
    assert [cause for _, cause in told] == ["did not answer: the driver is gone", ""]


def test_an_xid_that_says_ask_the_driver_is_answered_by_the_driver() -> None:
    driver = Driver([device(A, 0)])
    found, told = watch(driver)

    async def story() -> None:
        await found.read_all()
        driver.readings[A] = health.Reading(recovery_action=1)
        driver.faults.put(gpu_source.Fault(A, 154))
        driver.faults.put(gpu_source.Fault(None, 79))
        following = asyncio.create_task(found.follow_xids())
        for _ in range(6_000):
            await asyncio.sleep(0.01)
            if told and driver.faults.empty():
                break
        following.cancel()

    asyncio.run(story())

    assert told == [(A, "the driver requests recovery action 1")]


def test_what_an_earlier_process_knew_is_kept_for_its_gpus_alone() -> None:
    driver = Driver([device(A, 0)])
    found, _ = watch(driver)
    sick = health.after_xid(health.Health(), 79, 0.0, "b1", health.Rules())

    found.remember({B: sick}, [device(A, 0), device(B, 1)])
    asyncio.run(found.read_all())

    assert [one.uuid for one in found.devices] == [A, B]
    assert not found.states[B].available
    assert found.states[A].available
