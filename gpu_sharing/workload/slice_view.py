"""The commands `show` and `top`: the slice, and what is used of it, as text on one screen or as JSON."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from gpu_sharing.workload import sampling, slices, usage

_CLEAR = "\x1b[H\x1b[2J"
_BAR = 30
_AT_LIMIT = 0.95
_UNKNOWN = "unknown"


def add_arguments(parser: argparse.ArgumentParser, *, is_top: bool) -> None:
    """Add the arguments of `top` or of `show`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    if is_top:
        parser.add_argument("--once", action="store_true", help="print once and exit")
        parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="default: 2")
    parser.set_defaults(run=top if is_top else show)


def _seconds(text: str) -> float:
    value = float(text)
    if not sampling.LEAST_SECONDS <= value <= sampling.MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"write {sampling.LEAST_SECONDS:g} to {sampling.MOST_SECONDS:g} seconds")
    return value


def show(options: argparse.Namespace) -> int:
    """Print what the container was given. Returns 0, or 2 where no slice is known."""
    found = slices.my_slice()
    if options.json:
        print(json.dumps(found.as_json()))
    else:
        print("\n".join([*_given(found), *_problems(found.problems)]))
    return 0 if found.gpus else 2


def top(options: argparse.Namespace) -> int:
    """Print what the container uses, until Ctrl-C. Returns 0, or 2 where no slice is known."""
    while True:
        found = slices.my_slice()
        used = usage.read(found)
        clear = _CLEAR if sys.stdout.isatty() and not options.once else ""
        if options.json:
            print(json.dumps(as_json(found, used)), flush=True)
        else:
            print(clear + "\n".join(screen(found, used)), flush=True)
        if options.once or not found.gpus:
            return 0 if found.gpus else 2
        try:
            time.sleep(options.interval)
        except KeyboardInterrupt:
            return 0


def as_json(found: slices.Slice, used: usage.Usage) -> dict[str, Any]:
    """Return slice and usage as one value that `json.dumps` accepts."""
    return {"slice": {**found.as_json(), "problems": []}, **used.as_json()}


def screen(found: slices.Slice, used: usage.Usage) -> Iterator[str]:
    """Yield the lines of `top`."""
    yield from _given(found, with_gpus=False)
    for gpu in used.gpus:
        yield f"GPU {gpu.index}  {gpu.uuid}"
        yield f"  memory    {_bar(gpu.used_mib, gpu.limit_mib)} {_mib(gpu.used_mib)} of {_mib(gpu.limit_mib)}"
        yield f"  headroom  {_mib(gpu.headroom_mib)} (counted by {gpu.source})"
        yield f"  cores     {_cores(gpu)}"
        if gpu.temperature_celsius is not None:
            yield f"  temperature {gpu.temperature_celsius:g} °C"
    yield from _problems(used.problems)


def _given(found: slices.Slice, *, with_gpus: bool = True) -> Iterator[str]:
    if not found.gpus:
        yield "no slice: this process was given no GPU by the device plugin, as far as its environment shows"
        return
    pod = f"{found.namespace or _UNKNOWN}/{found.pod or _UNKNOWN}, container {found.container or _UNKNOWN}"
    yield f"pod       {pod}"
    yield f"node      {found.node or _UNKNOWN}"
    yield f"isolation {found.isolation or _UNKNOWN}"
    yield f"slice     {found.slice_id or _UNKNOWN}, decision {found.decision_id or _UNKNOWN}"
    for gpu in found.gpus if with_gpus else ():
        limit = "no limit" if gpu.cores_percent == 0 else _percent(gpu.cores_percent)
        yield f"GPU {gpu.index}     {gpu.uuid}: {_mib(gpu.memory_mib)}, cores {limit}"


def _cores(gpu: usage.GpuUsage) -> str:
    """Return the compute of a GPU in words; at the limit why kernels are late."""
    limit = "no limit" if gpu.cores_percent == 0 else f"{_percent(gpu.cores_percent)} allocated"
    own = f"{_percent(gpu.own_utilization_percent)} used by this container"
    text = f"{limit}, {own}, {_percent(gpu.utilization_percent)} by all"
    if gpu.cores_percent and (gpu.own_utilization_percent or 0) >= _AT_LIMIT * gpu.cores_percent:
        return f"{text}; at the limit: HAMi-core delays kernels"
    return text


def _problems(problems: tuple[Any, ...]) -> Iterator[str]:
    yield from (f"! {problem}" for problem in problems)


def _bar(used: int | None, limit: int | None) -> str:
    if used is None or not limit:
        return f"[{'?' * _BAR}]"
    full = min(round(used / limit * _BAR), _BAR)
    return f"[{'#' * full}{'.' * (_BAR - full)}]"


def _mib(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value} MiB"


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:g} %"
