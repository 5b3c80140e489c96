"""Pods that come and go for an hour: nothing of the extender grows, and its books stay what a new one would make.

`python -m chaos.soak --minutes 60`. Every minute the arrivals pause until all is quiet; then what the extender answers
about each GPU is compared with the sum of the records of the pods.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

from chaos import run, scenario
from chaos import site as sites
from lab.real import client
from tests.support import accounting

_PODS = "/api/v1/namespaces/default/pods"
_PODS_PER_SECOND = 20.0
_LIFE_SECONDS = 20.0
_QUIET_SECONDS = 60.0
_MOST_GROWTH_MIB = 6.0
_MOST_MORE_DESCRIPTORS = 16
_MOST_MORE_THREADS = 2
_CREATORS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """The extender's process at one moment."""

    memory_mib: float
    descriptors: int
    threads: int


def sample(pid: int) -> Sample:
    """Read a process."""
    process = pathlib.Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return Sample(
        memory_mib=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
    )


def grows(samples: list[Sample]) -> list[str]:
    """Return what is larger in the last quarter than in the third; the first half fills caches, of 20,000 events."""
    quarter = max(len(samples) // 4, 1)
    before, after = samples[2 * quarter : 3 * quarter] or samples, samples[-quarter:]
    found = []
    for name, most in (
        ("memory_mib", _MOST_GROWTH_MIB),
        ("descriptors", _MOST_MORE_DESCRIPTORS),
        ("threads", _MOST_MORE_THREADS),
    ):
        was = statistics.median(getattr(one, name) for one in before)
        now = statistics.median(getattr(one, name) for one in after)
        if now > was + most:
            found.append(f"{name}: {now:g} at the end, {was:g} before")
    return found


class Churn:
    """Creates pods and deletes each after its life.

    Attributes:
        created: How many were created so far.
    """

    def __init__(self, site: sites.SchedulingSite) -> None:
        self._site = site
        self._stop = threading.Event()
        self._runs = threading.Event()
        self._lock = threading.Lock()
        self._working = 0
        self.created = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_CREATORS)]

    def start(self) -> None:
        """Begin."""
        self._runs.set()
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """Create and delete nothing, once this returns."""
        self._runs.clear()
        while self._working:
            time.sleep(0.01)

    def go_on(self) -> None:
        """Create and delete again."""
        self._runs.set()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._runs.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self) -> None:
        living: list[tuple[float, str]] = []
        due = time.monotonic()
        while not self._stop.is_set():
            self._runs.wait()
            with self._lock:
                self._working += 1
                self.created += 1
                body = self._site.body(self.created)
            try:
                self._step(living, body)
            finally:
                with self._lock:
                    self._working -= 1
            due = max(due + _CREATORS / _PODS_PER_SECOND, time.monotonic() - 1)
            self._stop.wait(max(due - time.monotonic(), 0))

    def _step(self, living: list[tuple[float, str]], body: dict[str, object]) -> None:
        name = f"soak-{self.created}-{len(living)}-{time.monotonic_ns()}"
        body["metadata"] = {"name": name}
        with contextlib.suppress(OSError, http.client.HTTPException, client.Refused):
            self._site.plane.api("POST", _PODS, body)
            living.append((time.monotonic(), name))
        while living and living[0][0] < time.monotonic() - _LIFE_SECONDS:
            _, gone = living.pop(0)
            with contextlib.suppress(OSError, http.client.HTTPException, client.Refused):
                self._site.plane.api("DELETE", f"{_PODS}/{gone}", {"gracePeriodSeconds": 0})


def differences(site: sites.SchedulingSite) -> list[str]:
    """Return where the extender's books and the records of the pods differ, once they agree or a minute has passed."""
    deadline = time.monotonic() + _QUIET_SECONDS
    while True:
        pods = site.plane.api.pages(_PODS)
        nodes = json.loads(site.replicas[0].extender.get("api", "/api/v1/nodes")[1])["nodes"]
        found = [f"{pod['metadata']['name']} is unbound" for pod in pods if not pod["spec"].get("nodeName")]
        found += _of_gpus(nodes, accounting.held(pods))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _of_gpus(nodes: list[dict[str, object]], held: dict[str, accounting.Held]) -> list[str]:
    found = []
    for node in nodes:
        for gpu in node["gpus"]:  # type: ignore[attr-defined]
            right = held.get(gpu["uuid"], accounting.Held())
            books = (gpu["memory_mib"]["allocated"], gpu["cores_percent"]["allocated"], gpu["slots"]["allocated"])
            if books != (right.memory_mib, right.cores_percent, right.containers):
                found.append(f"{gpu['uuid']}: the books have {books}, the records {right}")
    return found


def soak(minutes: float) -> int:
    """Run it. Returns the exit status."""
    wanted = scenario.parse("soak", {"title": "soak", "faults": [{"kind": "api-gone"}]}, {"api-gone": ()})
    failed: list[str] = []
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, sites.running(pathlib.Path(folder), wanted) as site:
        assert isinstance(site, sites.SchedulingSite)
        churn, extender = Churn(site), site.replicas[0].extender
        churn.start()
        try:
            ends = time.monotonic() + 60 * minutes
            while time.monotonic() < ends:
                time.sleep(min(60, max(ends - time.monotonic(), 0)))
                churn.pause()
                failed += differences(site)
                churn.go_on()
                samples.append(sample(extender.pid))
                drift = extender.metric("hami_scheduler_drift_total")
                run.say(
                    f"{len(samples)} min: {churn.created} pods, {samples[-1]}, drift {drift:g}, "
                    f"{len(failed)} differences"
                )
        finally:
            churn.stop()
        failed += [f"violation: {one}" for one in site.violations()]
    failed += grows(samples)
    for one in failed[:20]:
        print(one)
    first, last = samples[0], samples[-1]
    print(f"{minutes:g} min, {churn.created} pods; first {first}; last {last}; {'FAILED' if failed else 'flat'}")
    return 1 if failed else 0


def main() -> int:
    """Run what was requested. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="how long (default 60)")
    return soak(parser.parse_args().minutes)


if __name__ == "__main__":
    sys.exit(main())
