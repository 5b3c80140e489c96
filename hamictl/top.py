"""`hamictl top`: every GPU, the most allocated first, with measured memory and utilization."""

import argparse
import math
import sys

from hamictl import failures, flags, output, reader, views, watching

_CLEAR = "\033[H\033[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument(
        "--prometheus", default="", metavar="URL", help="Prometheus with the used memory (default: none)"
    )
    parser.add_argument(
        "-w", "--watch", action="store_true",
        help="on a terminal, print everything again every two seconds; else each GPU that changes, with the time",
    )  # fmt: skip
    flags.add_reaching(parser)
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the GPUs. Returns the exit status."""
    style = flags.style(options)
    on_terminal = sys.stdout.isatty() and style.is_table
    printer = watching.Printer(style, "HEALTH", views.GPUS_WIDE_ONLY)
    with reader.reaching(flags.address(options)) as api:
        for _ in watching.turns(watching=options.watch):
            gpus = views.gpus(api.nodes(), api.pods(), _used(options.prometheus))
            rows = views.gpu_rows(gpus)
            if options.watch and not on_terminal:
                pairs = zip(gpus, rows, strict=True)
                printer.show({f"gpu/{one['uuid']}": watching.Item(one, row) for one, row in pairs}, watching.now())
                continue
            if options.watch:
                print(f"{_CLEAR}{watching.now():%H:%M:%S}, every {watching.SECONDS:g} s")
            output.print_rows(
                gpus, rows, style, "no node has GPUs yet",
                wide_only=views.GPUS_WIDE_ONLY, names=[f"gpu/{one['uuid']}" for one in gpus],
            )  # fmt: skip
    return 0


def _used(url: str) -> dict[str, dict[str, float]]:
    if not url:
        return {}
    from gpu_sharing.adapters import prometheus

    used: dict[str, dict[str, float]] = {}
    for name in ("memory_used_bytes", "utilization_percent"):
        try:
            answer = prometheus.ask(url, f"hami_gpu_{name}", 10.0)
        except prometheus.NoAnswer as cause:
            raise failures.CommandFailed(f"--prometheus {url}: {cause}") from cause
        for labels, value in filter(lambda sample: math.isfinite(sample[1]), answer):
            used.setdefault(labels.get("device", ""), {})[name.replace("_used", "")] = value
    return used
