"""Wakes refused pods that fit now: one annotation patch, which makes kube-scheduler try that pod alone again."""

import time
from collections.abc import Callable

import structlog

from gpu_sharing.adapters import pauses
from scheduler_extender.act import leadership, pod_writer
from scheduler_extender.decide import wake_order
from scheduler_extender.decide.core import DecisionCore

RETRY = "hami.io/retry"
_EVERY_SECONDS = 0.2

log = structlog.get_logger("waking")


async def run(core: DecisionCore, writer: pod_writer.PodWriter, leads: Callable[[], bool]) -> None:
    """Wake pods for ever while leading; ends only by cancellation."""

    async def wake_all() -> None:
        pause = pauses.Pause()
        for pod in wake_order.pods_to_wake(core):
            if pod is not None and await writer.annotate(pod, RETRY, str(int(time.time() * 1000))):
                core.metrics.retries.inc()
                log.info("woken", pod=pod.key)
            await pause()

    await leadership.while_leading(leads, _EVERY_SECONDS, wake_all)
