"""Measurements: queried from a Prometheus, or read from the monitors, a few at a time."""

import collections
import concurrent.futures
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib import parse

import msgspec
import structlog
from prometheus_client import parser

from gpu_sharing.adapters import http_get, kubernetes, prometheus
from gpu_sharing.core import error_codes, errors
from webui import cluster, history, snapshots

_TIMEOUT_SECONDS = 20.0
_GPU_USED, _GPU_BUSY = "hami_gpu_memory_used_bytes", "hami_gpu_utilization_percent"
_SHARE_USED = "hami_vgpu_memory_usage_bytes"
_GPU_ALLOCATED, _SHARE_ALLOCATED = "hami_gpu_allocated_memory_bytes", "hami_vgpu_allocated_memory_bytes"

_MONITOR_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 16 * 1024 * 1024
_AT_ONCE = 8
_PER_SECOND = 20.0
_ROUND_SECONDS = 15.0
_FRESH_SECONDS = 3.0
_FORGOTTEN_SECONDS = 900.0

Sample = tuple[Mapping[str, str], float]
log = structlog.get_logger("meters")


class NoAnswer(errors.GpuSharingError):
    """The Prometheus or the monitor does not answer."""


def _used(gpus: Iterable[Sample], busy: Iterable[Sample], shares: Iterable[Sample], asked_at: float) -> snapshots.Used:
    by_share: collections.Counter[tuple[str, str]] = collections.Counter()
    by_pod: collections.Counter[str] = collections.Counter()
    for labels, value in _finite(shares):
        pod = f"{labels.get('namespace')}/{labels.get('pod')}"
        by_share[pod, labels.get("device", "")] += value  # type: ignore[assignment]  # bytes, as Prometheus counts
        by_pod[pod] += value  # type: ignore[assignment]
    return snapshots.Used(
        {labels.get("device", ""): value for labels, value in _finite(gpus)},
        dict(by_pod),
        dict(by_share),
        {labels.get("device", ""): value for labels, value in _finite(busy)},
        asked_at,
    )


def _finite(samples: Iterable[Sample]) -> Iterator[Sample]:
    return (sample for sample in samples if math.isfinite(sample[1]))


class Prometheus:
    """Queries a Prometheus that scrapes the monitors."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._url = url
        self._clock = clock

    def read(self) -> snapshots.Used:
        """What the monitors have measured last.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        at = self._clock()
        summed = f"sum by (namespace, pod, device) ({_SHARE_USED})"
        with _answering():
            gpus, busy, shares = (
                prometheus.ask(self._url, query, _TIMEOUT_SECONDS) for query in (_GPU_USED, _GPU_BUSY, summed)
            )
        return _used(gpus, busy, shares, at)

    def series(self, node: str, pod: str, seconds: float) -> history.Series:
        """Memory of a node, of a pod (`<namespace>/<name>`) or, where neither is named, of the cluster, up to now.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        namespace, _, name = pod.partition("/")
        wanted = {"namespace": namespace, "pod": name} if pod else {"node": node} if node else {}
        matchers = ",".join(f"{label}={msgspec.json.encode(value).decode()}" for label, value in wanted.items())
        chosen = f"{{{matchers}}}"
        end = self._clock()
        names = (_SHARE_ALLOCATED, _SHARE_USED) if pod else (_GPU_ALLOCATED, _GPU_USED)
        with _answering():
            allocated, used = (
                prometheus.ask_range(
                    self._url, f"sum({name}{chosen})", end - seconds, end, seconds / 240, _TIMEOUT_SECONDS
                )
                for name in names
            )
        at = sorted(allocated.keys() | used.keys())
        curves = ([snapshots.mib(curve.get(moment)) for moment in at] for curve in (allocated, used))
        return history.series_of(at, *curves)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """In the words of this module where Prometheus does not answer."""
    try:
        yield
    except prometheus.NoAnswer as cause:
        raise NoAnswer(f"Prometheus does not answer: {cause}") from cause


class _Port(msgspec.Struct):
    port: int | None = None


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] = msgspec.field(default_factory=list)
    node_name: str = ""


class _Slice(msgspec.Struct):
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _Slices(msgspec.Struct):
    items: list[_Slice] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A Service in front of the monitors."""

    namespace: str
    name: str
    port: int
    """Of their pods."""


class AddressBook:
    """Which monitor serves which node, by the EndpointSlices of their Service."""

    def __init__(self, reached: cluster.Cluster, service: Service) -> None:
        self._cluster = reached
        self._service = service

    def read(self) -> dict[str, str]:
        """Return the URL of each node's monitor.

        Raises:
            NoAnswer: The API server does not answer.
        """
        service = self._service
        query = parse.urlencode({"labelSelector": f"kubernetes.io/service-name={service.name}"})
        path = f"/apis/discovery.k8s.io/v1/namespaces/{service.namespace}/endpointslices?{query}"

        async def slices(client: kubernetes.Client) -> _Slices:
            return await client.get(path, _Slices)

        try:
            by_meter = self._cluster.ask(slices)
        except (errors.KubernetesError, msgspec.MsgspecError) as cause:
            raise NoAnswer(f"the addresses of the monitors cannot be read from the API server: {cause}") from cause
        return {
            endpoint.node_name: _url(endpoint.addresses[0], service.port)
            for one in by_meter.items or ()
            if any(port.port == service.port for port in one.ports or ())
            for endpoint in one.endpoints or ()
            if endpoint.node_name and endpoint.addresses
        }


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class Monitors:
    """Reads the monitors one after another, slowly, and that of a node at once for the page of the node.

    Attributes:
        problem: Why some measurements are missing; empty while none is.
    """

    def __init__(self, addresses: Callable[[], Mapping[str, str]], clock: Callable[[], float] = time.time) -> None:
        self._addresses = addresses
        self._clock = clock
        self._lock = threading.Lock()
        self._urls: Mapping[str, str] = {}
        self._known: dict[str, snapshots.Used] = {}
        self.problem = "the monitors have not been read yet"

    def start(self) -> None:
        """Read the monitors periodically, in threads of their own."""
        threading.Thread(target=self._run, name="monitors", daemon=True).start()

    def _run(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "monitors") as pool:
            while True:
                started = time.monotonic()
                self.ask_all(pool)
                time.sleep(max(_ROUND_SECONDS - (time.monotonic() - started), 0.0))

    def ask_all(self, pool: concurrent.futures.Executor) -> None:
        """Read every monitor once, a few at a time."""
        try:
            self._urls = self._addresses()
        except NoAnswer as cause:
            self._say(str(cause))
            return
        if not self._urls:
            self._say("there are no monitors")
        asked = []
        for node in list(self._urls):
            asked.append(pool.submit(self._problem_with, node))
            time.sleep(1 / _PER_SECOND)
        problems = [problem for one in asked if (problem := one.result())]
        with self._lock:
            horizon = self._clock() - _FORGOTTEN_SECONDS
            self._known = {name: used for name, used in self._known.items() if (used.oldest_at or 0) > horizon}
        if asked:
            self._say(f"{len(problems)} of {len(asked)} monitors do not answer: {problems[0]}" if problems else "")

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("use is not known everywhere", error_code=error_codes.WEBUI_METER, cause=problem)
        self.problem = problem

    def _problem_with(self, node: str) -> str:
        try:
            self.measure(node)
        except NoAnswer as cause:
            return str(cause)
        return ""

    def measure(self, node: str) -> snapshots.Used:
        """What is used on a node, as of now.

        Raises:
            NoAnswer: Its monitor does not answer, or there is none.
        """
        now = self._clock()
        known = self._known.get(node)
        if known and known.oldest_at and now - known.oldest_at < _FRESH_SECONDS:
            return known
        url = self._urls.get(node)
        if url is None:
            raise NoAnswer(f"{node} has no monitor")
        try:
            body = http_get.read(f"{url}/metrics", _MONITOR_TIMEOUT_SECONDS, most_bytes=_MOST_BYTES)
            exposition = read_exposition(body.decode(), now)
        except (OSError, ValueError) as cause:
            raise NoAnswer(f"the monitor of {node} does not answer: {getattr(cause, 'reason', cause)}") from cause
        with self._lock:
            self._known[node] = exposition
        return exposition

    def read(self) -> snapshots.Used:
        """What is known of all nodes.

        Raises:
            NoAnswer: Nothing is.
        """
        with self._lock:
            known = list(self._known.values())
        if not known:
            raise NoAnswer(self.problem or "no monitor has answered")
        together: Any = {name: {} for name in ("gpus", "pods", "shares", "busy")}
        for monitor in known:
            for name, amounts in together.items():
                amounts.update(getattr(monitor, name))
        return snapshots.Used(**together, oldest_at=min(one.oldest_at or 0.0 for one in known))


def read_exposition(text: str, asked_at: float) -> snapshots.Used:
    """Return the memory and utilization in a monitor's exposition.

    Raises:
        ValueError: It is not an exposition.
    """
    wanted = (_GPU_USED, _GPU_BUSY, _SHARE_USED)
    # Of thousands of lines three families matter, and the parser is slow.
    kept = "".join(f"{line}\n" for line in text.splitlines() if line.partition("{")[0] in wanted)
    samples: dict[str, list[Sample]] = collections.defaultdict(list)
    for family in parser.text_string_to_metric_families(kept):
        for sample in family.samples:
            samples[sample.name].append((sample.labels, sample.value))
    return _used(samples[_GPU_USED], samples[_GPU_BUSY], samples[_SHARE_USED], asked_at)
