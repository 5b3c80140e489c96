"""Run scenarios: `python -m chaos [NAME ...]`. Exit status 1 if an expectation does not hold or something got worse."""

import argparse
import pathlib
import sys
import time

from bench import report as bench_report
from chaos import faults, measure, report, run, scenario
from lab.real import build

QUICK = (
    "api-gone", "etcd-restarted", "extender-stopped", "leader-killed", "api-30-percent-failing", "duplicates",
    "clock-ahead", "xid-storm",
)  # fmt: skip
"""The eight that CI runs, in at most ten minutes."""


def main() -> int:
    """Run what was requested. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which scenarios (default: all)")
    parser.add_argument("--list", action="store_true", help="print their names and titles, and run none")
    parser.add_argument("--quick", action="store_true", help=f"only these eight: {', '.join(QUICK)}")
    parser.add_argument("--folder", type=pathlib.Path, default=scenario.FOLDER, help="with the scenario files")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write everything measured there")
    parser.add_argument("--write-baseline", action="store_true", help="make this run the one that others compare with")
    parser.add_argument("--write-page", action="store_true", help="put the table into the documents")
    parser.add_argument(
        "--from-json", type=pathlib.Path, nargs="+", metavar="FILE", help="take results from there, and run none"
    )
    options = parser.parse_args()
    try:
        known = {one.name: one for one in scenario.all_of(options.folder, faults.OPTIONS)}
    except scenario.BadScenario as bad:
        print(f"chaos: CHAOS_BAD_SCENARIO:\n{bad}", file=sys.stderr)
        return 2
    names = options.names or (QUICK if options.quick else sorted(known))
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if options.list:
        for name in names:
            print(f"{name:28}{known[name].title}")
        return 0
    if options.from_json:
        found = {one.name: one for file in options.from_json for one in report.from_json(file.read_text())}
        results = [found[name] for name in names if name in found]
    else:
        results = _run_all([known[name] for name in names], options.json)
    print(report.table(results))
    worse = report.worse(results, report.read_baseline())
    for sentence in worse:
        print(f"worse than the baseline: {sentence}")
    if options.write_baseline:
        report.write_baseline(results)
    if options.write_page:
        report.write_page(results, {**bench_report.machine(), "Kubernetes": build.KUBERNETES_VERSION})
    failed = [result for result in results if result.failures]
    print(f"{len(results) - len(failed)} of {len(results)} scenarios hold")
    return 1 if failed or (worse and not options.write_baseline) else 0


def _run_all(wanted: list[scenario.Scenario], kept_in: pathlib.Path | None) -> list[measure.Result]:
    """Run scenarios; what is measured is kept after each."""
    results = []
    for number, one in enumerate(wanted, start=1):
        started = time.monotonic()
        run.say(f"{number} of {len(wanted)}: {one.name}: {one.title}")
        result = run.run(one)
        run.say(f"  {time.monotonic() - started:.0f} s; {'holds' if not result.failures else 'DOES NOT HOLD'}")
        for failure in result.failures:
            run.say(f"  {failure}")
        results.append(result)
        if kept_in:
            kept_in.write_text(report.as_json(results))
    return results


if __name__ == "__main__":
    sys.exit(main())
