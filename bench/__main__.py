"""Run the benchmarks: `python -m bench [question ...] [--quick] [--json FILE]`. Fails if a stated target is missed."""

import argparse
import dataclasses
import json
import pathlib
import sys

from bench import handlers, house, loop, monitor, node, report, scale, scrapes, throughput, webui, workload

QUESTIONS = {
    "house": house.run,
    "handlers": handlers.run,
    "loop": loop.run,
    "throughput": throughput.run,
    "scale": scale.run,
    "node": node.run,
    "monitor": monitor.run,
    "scrapes": scrapes.run,
    "webui": webui.run,
    "workload": workload.run,
}


def main() -> int:
    """Run what was requested. Returns the exit status: 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("questions", nargs="*", help=f"which: {', '.join(QUESTIONS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it; targets do not count")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    unknown = set(options.questions) - QUESTIONS.keys()
    if unknown:
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    reports = []
    for name in options.questions or QUESTIONS:
        print(f"== {name}", file=sys.stderr, flush=True)
        answered = QUESTIONS[name](options.quick)
        answered.conditions = {**report.machine(), **answered.conditions}
        report.show(answered)
        reports.append(answered)
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(one) for one in reports], indent=1) + "\n")
    return 1 if not options.quick and any(one.missed for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
