"""`python -m gpu_sharing.workload probe URL…`: ready only when every listed model server generated a token.

For exec probes and for scripts that wait for servers. Exit status 0: all are ready; 1: at least one is not; 2: the call
or the environment cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from gpu_sharing.core import error_codes

if TYPE_CHECKING:
    from gpu_sharing.workload.canaries import asking
    from gpu_sharing.workload.canaries.settings import CanarySettings

READY, NOT_READY, USAGE = 0, 1, 2
ENGINE_NAMES = (
    "openai", "openai-chat", "vllm", "trtllm", "sglang", "sglang-decode", "sglang-prefill", "sglang-vision",
    "sglang-image", "triton", "kserve",
)  # fmt: skip
"""Of `canaries.engines`, which is only imported when a probe runs."""
_MOST_URLS = 32
_MOST_SECONDS = 86_400.0
_PAUSE_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `probe`, and list the variables that it reads."""
    from gpu_sharing.workload.canaries import settings

    parser.epilog = "Variables: " + "; ".join(f"{name}: {text}" for name, text in settings.VARIABLES.items()) + "."
    parser.add_argument("urls", nargs="+", metavar="URL", help="address of a model server, as http://localhost:8000")
    parser.add_argument(
        "--engine", default="openai", metavar="NAME", help=f"one of {', '.join(ENGINE_NAMES)}; default openai"
    )
    parser.add_argument(
        "--timeout-seconds", type=_seconds, default=10.0, metavar="N",
        help="for each server: its answer must be complete by then; default 10",
    )  # fmt: skip
    parser.add_argument(
        "--wait-seconds", type=_seconds, default=0.0, metavar="N",
        help="ask again until all are ready, for this long; default 0: ask once",
    )  # fmt: skip
    parser.add_argument(
        "--traffic-window-seconds", type=_seconds, default=0.0, metavar="N",
        help="read the server's metrics twice, this long apart, and send nothing if they grew; default 0",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace, environment: Mapping[str, str] | None = None) -> int:
    """Probe, print, and return the exit status.

    Args:
        arguments: Of `add_arguments`.
        environment: Overrides of the request; None for the process's own.
    """
    from gpu_sharing.workload.canaries import http_calls
    from gpu_sharing.workload.canaries import settings as canary_settings

    try:
        _check(arguments)
        for url in arguments.urls:
            http_calls.target(url)
        settings = canary_settings.from_environment(os.environ if environment is None else environment)
    except http_calls.CanaryRefused as refused:
        sys.stderr.write(f"{refused} [{refused.code}]\n")
        return USAGE
    outcomes = until_ready(arguments, settings)
    ready = all(one.ready for one in outcomes)
    _write(outcomes, ready, arguments.json)
    return READY if ready else NOT_READY


def until_ready(arguments: argparse.Namespace, settings: CanarySettings) -> list[asking.Outcome]:
    """Return the last outcome of every server: each is asked until it is ready, or the time to wait has passed."""
    from gpu_sharing.workload.canaries import asking, engines

    canary = engines.ENGINES[arguments.engine]
    last = time.monotonic() + arguments.wait_seconds
    outcomes: dict[str, asking.Outcome] = {}
    while True:
        for url in dict.fromkeys(arguments.urls):
            if url not in outcomes or not outcomes[url].ready:
                outcomes[url] = asking.outcome(
                    canary, url, settings, arguments.timeout_seconds, arguments.traffic_window_seconds
                )
        if all(one.ready for one in outcomes.values()) or time.monotonic() + _PAUSE_SECONDS > last:
            return list(outcomes.values())
        time.sleep(_PAUSE_SECONDS)


def _check(arguments: argparse.Namespace) -> None:
    from gpu_sharing.workload.canaries.http_calls import CanaryRefused

    if arguments.engine not in ENGINE_NAMES:
        sentence = f"There is no engine {arguments.engine[:50]!r}. Write one of {', '.join(ENGINE_NAMES)}."
        raise CanaryRefused(error_codes.CANARY_BAD_SETTING, sentence)
    if len(arguments.urls) > _MOST_URLS:
        sentence = f"{len(arguments.urls)} addresses are too many. Write at most {_MOST_URLS}."
        raise CanaryRefused(error_codes.CANARY_BAD_SETTING, sentence)
    if arguments.timeout_seconds <= 0:
        sentence = "--timeout-seconds 0 leaves no time for an answer. Write a number above 0."
        raise CanaryRefused(error_codes.CANARY_BAD_SETTING, sentence)


def _write(outcomes: Sequence[asking.Outcome], ready: bool, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"ready": ready, "endpoints": [asdict(one) for one in outcomes]}) + "\n")
        return
    for one in outcomes:
        said = f"ready by its {one.by}" if one.ready else f"not ready: {one.reason} [{one.error_code}]"
        sys.stdout.write(f"{one.url}: {said} ({one.seconds:.3f} s)\n")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a number of seconds from 0 to {_MOST_SECONDS:.0f}")
    return value
