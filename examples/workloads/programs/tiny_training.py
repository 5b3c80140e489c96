"""A training job with metrics, logs and a report. The model is a toy in pure Python: it needs no GPU and no framework.

Replace `TinyModel` and `batches` by yours; every other line stays as it is. The metrics are on port 9400.
"""

import argparse
import random
import time
from collections.abc import Iterator

from gpu_sharing.workload import (
    GPUMonitor,
    PerformanceAnalyzer,
    StructuredLogger,
    TrainingMetricsCollector,
    my_slice,
)
from gpu_sharing.workload.exporter import Exporter

Batch = list[tuple[float, float, int]]


class TinyModel:
    """Learns on which side of a line a point is: a perceptron with three weights."""

    def __init__(self) -> None:
        self.weights = [0.0, 0.0, 0.0]

    def side(self, x: float, y: float) -> int:
        """Return 1 or -1."""
        across, up, shift = self.weights
        return 1 if across * x + up * y + shift > 0 else -1

    def learn(self, batch: Batch, learning_rate: float) -> float:
        """Learn from a batch. Returns the loss: the part of its points that were on the wrong side."""
        wrong = 0
        for x, y, side in batch:
            if self.side(x, y) != side:
                wrong += 1
                for index, value in enumerate((x, y, 1.0)):
                    self.weights[index] += learning_rate * side * value
        return wrong / len(batch)


def batches(count: int, size: int, seed: int) -> Iterator[Batch]:
    """Yield random points, and on which side of the line y = x / 2 + 0.1 they are."""
    numbers = random.Random(seed)
    for _ in range(count):
        points = [(numbers.uniform(-1, 1), numbers.uniform(-1, 1)) for _ in range(size)]
        yield [(x, y, 1 if y > x / 2 + 0.1 else -1) for x, y in points]


def train(options: argparse.Namespace, metrics: TrainingMetricsCollector, log: StructuredLogger) -> None:
    """Train, and record each batch and epoch."""
    model, steps = TinyModel(), PerformanceAnalyzer()
    for epoch in range(1, options.epochs + 1):
        learning_rate = 0.5 / epoch
        data = batches(options.batches, 64, seed=epoch)
        for number in range(1, options.batches + 1):
            with metrics.data_loading(), steps.step("load data"):
                batch = next(data)
            began = time.perf_counter()
            with steps.step("learn"):
                loss = model.learn(batch, learning_rate)
                time.sleep(options.pause_seconds)
            metrics.record_batch(
                time.perf_counter() - began, loss=loss, samples=len(batch), learning_rate=learning_rate, batch=number
            )
        with steps.step("evaluate"):
            points = next(batches(1, 1000, seed=0))
            accuracy = sum(model.side(x, y) == side for x, y, side in points) / len(points)
        metrics.record_epoch(epoch, accuracy=accuracy)
        log.info("epoch ended", epoch=epoch, loss=loss, accuracy=accuracy)
    print(steps.report(), flush=True)


def main() -> None:
    """Train with metrics, a monitor of the slice's GPUs, and logs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--pause-seconds", type=float, default=0.0, help="in each batch, so that it can be watched")
    parser.add_argument("--linger-seconds", type=float, default=0.0, help="at the end, for the last scrape")
    parser.add_argument("--port", type=int, default=9400)
    options = parser.parse_args()

    log = StructuredLogger("tiny-training")
    metrics = TrainingMetricsCollector()
    with GPUMonitor(interval_seconds=1.0) as monitor:
        monitor.export()
        exporter = Exporter(options.port)
        log.info("training begins", port=exporter.port, **described())
        train(options, metrics, log)
        time.sleep(options.linger_seconds)
        exporter.stop()
    log.info("training ended")


def described() -> dict[str, object]:
    """Return what a log line should have of the slice."""
    mine = my_slice()
    return {
        "gpus": len(mine.gpus), "memory_mib": [one.memory_mib for one in mine.gpus],
        "not_known": [str(one) for one in mine.problems],
    }  # fmt: skip


if __name__ == "__main__":
    main()
