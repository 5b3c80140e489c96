"""The report of a benchmark: a table, its conditions, and whether its targets are met."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import rich.console
import rich.table


@dataclasses.dataclass
class Report:
    """The result of one benchmark."""

    question: str
    columns: list[str]
    rows: list[list[Any]]
    conditions: dict[str, Any]
    missed: list[str] = dataclasses.field(default_factory=list)
    """Targets that were not met, each as a sentence."""


def machine() -> dict[str, Any]:
    """Return the conditions that all benchmarks share."""
    models = [
        line.partition(":")[2].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "orjson", "uvicorn", "uvloop")},
    }


def show(report: Report) -> None:
    """Print a report as a table with its conditions."""
    console = rich.console.Console(width=140)
    table = rich.table.Table(*report.columns, title=report.question, title_justify="left")
    for row in report.rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
    console.print("conditions: " + ", ".join(f"{name} {value}" for name, value in report.conditions.items()))
    for missed in report.missed:
        console.print(f"MISSED: {missed}", style="bold red")
