"""Pods that arrive at a steady rate, and when each has what it requested."""

import contextlib
import http.client
import json
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from chaos import measure
from lab.real import client, control_plane

_PODS = "/api/v1/namespaces/default/pods"
_RETRY_SECONDS = 0.2
_WATCH_SECONDS = 30


class Load:
    """Creates pods as a user does who tries again while the API server does not answer.

    Attributes:
        times: When each pod was created, and when it was served.
    """

    def __init__(
        self,
        plane: control_plane.ControlPlane,
        body: Callable[[int], dict[str, Any]],
        is_served: Callable[[Mapping[str, Any]], bool],
        pods_per_second: float,
    ) -> None:
        self._plane = plane
        self._body = body
        self._is_served = is_served
        self._pods_per_second = pods_per_second
        self._stop = threading.Event()
        self._no_more = threading.Event()
        self._lock = threading.Lock()
        self._numbers = 0
        self.times: dict[str, measure.PodTimes] = {}
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._arrive, self._watch)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end_arrivals(self) -> None:
        """Create no more pods; those that exist are still observed."""
        self._no_more.set()
        self._threads[0].join(60)

    def stop(self) -> None:
        """End both."""
        self._no_more.set()
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def burst(self, count: int) -> None:
        """Create many pods as fast as they are accepted."""
        with self._lock:
            numbers = range(self._numbers, self._numbers + count)
            self._numbers += count
        threads = [threading.Thread(target=self._some, args=(numbers[one::4],), daemon=True) for one in range(4)]
        for thread in threads:
            thread.start()

    def unserved(self) -> list[str]:
        """Return the pods that have not what they requested."""
        return [name for name, pod in list(self.times.items()) if pod.bound_at is None and not pod.has_failed]

    def _some(self, numbers: range) -> None:
        for number in numbers:
            self._create(number)

    def _arrive(self) -> None:
        due = time.monotonic()
        while not self._no_more.is_set():
            with self._lock:
                number = self._numbers
                self._numbers += 1
            self._create(number)
            due = max(due + 1 / self._pods_per_second, time.monotonic() - 1)  # What was missed is not made up for.
            self._no_more.wait(max(due - time.monotonic(), 0))

    def _create(self, number: int) -> None:
        body = self._body(number)
        name = body["metadata"]["name"]
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self._plane.api("POST", _PODS, body)
            except client.Refused as refused:
                if refused.status != 409:  # Created by a call whose answer was lost.
                    time.sleep(_RETRY_SECONDS)
                    continue
            except (OSError, http.client.HTTPException):
                time.sleep(_RETRY_SECONDS)
                continue
            known = self.times.setdefault(name, measure.PodTimes(name, begun))
            known.created_at = begun
            return

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                page = self._plane.api("GET", f"{_PODS}?limit=10000")
                for pod in page["items"]:
                    self._see(pod)
                self._follow(page["metadata"]["resourceVersion"])
            except (OSError, http.client.HTTPException, client.Refused, ValueError, KeyError):
                time.sleep(_RETRY_SECONDS)

    def _follow(self, version: str) -> None:
        url = f"{self._plane.server}{_PODS}?watch=true&resourceVersion={version}&timeoutSeconds={_WATCH_SECONDS}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._plane.token('admin')}"})
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(request, context=context, timeout=_WATCH_SECONDS + 10) as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] not in ("ADDED", "MODIFIED"):
                    if event["type"] == "ERROR":
                        return
                    continue
                self._see(event["object"])
                if self._stop.is_set():
                    return

    def _see(self, pod: Mapping[str, Any]) -> None:
        has_failed = pod["status"].get("phase") == "Failed"
        if not (has_failed or self._is_served(pod)):
            return
        now = time.monotonic()
        known = self.times.setdefault(pod["metadata"]["name"], measure.PodTimes(pod["metadata"]["name"], now))
        if has_failed:
            known.has_failed = True
            return
        if known.bound_at is None:
            known.bound_at = now


def repeated_bindings(plane: control_plane.ControlPlane) -> int:
    """Return how many Bindings the API server was sent for pods that had one already; 0 where it is not audited."""
    sent: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for call in plane.audit():
            reference = call.get("objectRef") or {}
            if reference.get("subresource") == "binding" and call["stage"] == "ResponseComplete":
                name = reference.get("name", "")
                sent[name] = sent.get(name, 0) + 1
    return sum(count - 1 for count in sent.values())
