"""`python -m lab.gpu_check`: checks this machine, writes the report, and ends with 1 if there is a finding."""

import argparse
import datetime
import importlib.metadata
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Sequence

from device_plugin.driver import gpu_source, nvml
from lab.fake_driver import personalities
from lab.gpu_check import answers, differences, trials


def _safely(trial: Callable[[], Iterable[str]]) -> list[str]:
    """Return the lines of a trial; an exception is a finding."""
    lines: list[str] = []
    try:
        lines.extend(trial())
    except Exception as broken:  # A trial that fails must not prevent the report of the others.
        lines.append(f"FAILED: {type(broken).__name__}: {broken}")
    return lines


def _table(found: Sequence[answers.Answer]) -> list[str]:
    rows = ["| GPU | call | answer | ms |", "| --- | --- | --- | --- |"]
    for one in found:
        answer = f"**{one.error}**" if one.error else one.value.replace("|", "/") or "done"
        rows.append(f"| {'' if one.gpu is None else one.gpu} | {one.call} | {answer} | {one.milliseconds:.2f} |")
    return rows


def _compared(found: Sequence[answers.Answer], wanted: str) -> list[str]:
    names = [one.value for one in found if one.call == "nvmlDeviceGetName" and one.value]
    if not names:
        return ["FAILED: no GPU reports its name: nothing to compare"]
    chosen = personalities.read(wanted) if wanted else differences.personality_of(names[0])
    if chosen is None:
        return [f"- there is no personality of {names[0]}; `--personality NAME` compares with another one"]
    told = differences.compare(found, chosen)
    return [f"- compared with `{chosen.name}` ({chosen.about})", *(f"FAILED: {one}" for one in told)]


def _own_view() -> dict[str, list[str]]:
    """Run the trials of our own reading of the driver."""
    try:
        driver: gpu_source.GpuSource = nvml.connect()
    except gpu_source.GpuSourceError as refused:
        return {"What plugin and monitor read": [f"FAILED: there is no driver: {refused}"]}
    sections = {
        "What plugin and monitor read": _safely(lambda: trials.adapter(driver)),
        "Processes": _safely(lambda: trials.processes(driver)),
    }
    devices: Sequence[gpu_source.Device] = ()
    try:
        devices = driver.devices()
    except gpu_source.GpuSourceError as refused:
        sections["What plugin and monitor read"].append(f"FAILED: {refused}")
    driver.close()
    sections["MPS limits"] = _safely(lambda: trials.mps(devices[0] if devices else None))
    sections["The plugin beside a stand-in kubelet"] = _safely(lambda: trials.container(devices))
    return sections


def _report(wanted: str) -> tuple[str, int]:
    """Return the report, and the number of findings."""
    found = list(answers.ask())
    sections = {
        "Differences to the fake driver's personality": _compared(found, wanted),
        **_own_view(),
        "Calls of ours that this check does not know": [f"FAILED: {name}" for name in answers.not_asked()]
        or ["- none"],
    }
    findings = [line for lines in sections.values() for line in lines if line.startswith("FAILED")]
    machine = (
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, Linux {platform.release()} {platform.machine()}, "
        f"Python {platform.python_version()}, nvidia-ml-py {importlib.metadata.version('nvidia-ml-py')}"
    )
    head = [
        "# Report of `make gpu-check`",
        "",
        machine,
        f"- {len(findings)} findings",
        *(f"  - {line}" for line in findings),
    ]
    body = [part for title, lines in sections.items() for part in ("", f"## {title}", "", *lines)]
    return "\n".join([*head, *body, "", "## Every call and its answer", "", *_table(found)]) + "\n", len(findings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the machine. Returns the exit status: 0 without a finding, 1 with one."""
    parser = argparse.ArgumentParser("python -m lab.gpu_check", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/gpu-check.md"), help="the report")
    parser.add_argument("--personality", default="", choices=["", *personalities.names()], help="to compare with")
    options = parser.parse_args(arguments)
    text, findings = _report(options.personality)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(f"{findings} findings; the report is in {options.out}")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
