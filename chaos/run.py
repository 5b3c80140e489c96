"""Runs one scenario: the steady phase, the faults, the recovery, and then what must hold."""

import contextlib
import pathlib
import sys
import tempfile
import threading
import time

from chaos import faults, load, measure, scenario
from chaos import site as sites
from lab.real import client

_SETTLE_SECONDS = 20.0
"""How long the last pods may take after the recovery, before they count as lost."""
_LEAST_RECOVERY_SECONDS = 6.0
_RUNS_SECONDS = 60.0


def run(wanted: scenario.Scenario) -> measure.Result:
    """Run a scenario on a cluster of its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, sites.running(pathlib.Path(folder), wanted) as site:
        return _Run(wanted, site).play()


class _Run:
    """One run of a scenario."""

    def __init__(self, wanted: scenario.Scenario, site: sites.SchedulingSite | sites.NodeSite) -> None:
        self._wanted = wanted
        self._site = site
        self._load = load.Load(site.plane, site.body, site.is_served, wanted.pods_per_second)
        self._failed: list[str] = []

    def play(self) -> measure.Result:
        """Play all phases."""
        self._load.start()
        begun = time.monotonic()
        time.sleep(self._wanted.steady_seconds)
        faulty_from = time.monotonic()
        if self._wanted.burst_pods:
            self._load.burst(self._wanted.burst_pods)
        threads = [threading.Thread(target=self._inject, args=(fault,)) for fault in self._wanted.faults]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        faulty_until = time.monotonic()
        self._recover(faulty_until)
        ended = time.monotonic()
        self._load.end_arrivals()
        self._settle()
        self._load.stop()
        return self._result((begun, faulty_from, faulty_until, ended))

    def _inject(self, fault: scenario.Fault) -> None:
        inject, _ = faults.KINDS[fault.kind]
        time.sleep(fault.after_seconds)
        try:
            with inject(self._site, fault.options):
                time.sleep(fault.seconds)
        except Exception as problem:
            self._failed.append(f"the fault {fault.kind} could not be injected: {type(problem).__name__}: {problem}")

    def _recover(self, since: float) -> None:
        """Go on with the load until all is as before, or the expected time has passed and a little more."""
        limit = since + self._wanted.expected.recovery_seconds * 1.5
        while time.monotonic() < limit:
            time.sleep(0.2)
            now = time.monotonic()
            pods = [*self._load.times.values()]
            if now > since + _LEAST_RECOVERY_SECONDS and measure.recovery_seconds(pods, now, now) is not None:
                return

    def _settle(self) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._load.unserved() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _result(self, moments: tuple[float, float, float, float]) -> measure.Result:
        begun, faulty_from, faulty_until, ended = moments
        wanted, pods = self._wanted, [*self._load.times.values()]
        bound = sum(1 for pod in pods if pod.bound_at is not None)
        fault = measure.phase(pods, faulty_from, faulty_until)
        since = faulty_from + measure.GRACE_SECONDS if wanted.expected.recovers_during else faulty_until
        recovery = measure.recovery_seconds(pods, since, ended + measure.GRACE_SECONDS)
        percent = 100.0 * bound / len(pods) if pods else 0.0
        violations = self._violations()
        failures = [*self._failed, *(f"violation: {one}" for one in violations)]
        expected = wanted.expected
        if percent < expected.bound_percent:
            failures.append(f"{percent:.1f} % of the pods are bound, not {expected.bound_percent:g}")
        if expected.during_percent is not None and fault.bound_percent < expected.during_percent:
            failures.append(f"{fault.bound_percent:.1f} % were bound during the fault, not {expected.during_percent:g}")
        if recovery is None or recovery > expected.recovery_seconds:
            failures.append(f"recovery took {recovery} s, not {expected.recovery_seconds:g}")
        return measure.Result(
            name=wanted.name,
            title=wanted.title,
            replicas=wanted.replicas,
            pods=len(pods),
            bound_percent=percent,
            steady=measure.phase(pods, begun, faulty_from),
            fault=fault,
            recovery=measure.phase(pods, faulty_until, ended),
            recovery_seconds=recovery,
            lost=len(pods) - bound,
            repeated_bindings=load.repeated_bindings(self._site.plane),
            violations=violations,
            failures=failures,
        )

    def _violations(self) -> list[str]:
        """What must never be; a container that has just started gets the time to write down what it has."""
        deadline = time.monotonic() + _RUNS_SECONDS
        while True:
            with contextlib.suppress(OSError, client.Refused):
                found = self._site.violations()
                if not any("has written nothing" in one for one in found) or time.monotonic() > deadline:
                    return found
            if time.monotonic() > deadline:
                return ["the API server does not answer at the end"]
            time.sleep(0.5)


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)
