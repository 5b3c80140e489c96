"""The structure of the source: sizes, widest constructors, imports between folders, modules that a filter call passes.

Counted, not timed. `docs/explanation/architecture.md` quotes it.
"""

import ast
import pathlib
import statistics
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import orjson

from bench import handlers, report

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("gpu_sharing", "scheduler_extender", "device_plugin", "fault_injector", "webui", "hamictl")
LONGEST_FUNCTION_LINES = 40
MOST_COLLABORATORS = 5
"""Values that a constructor needs; one that takes more is a missed target."""


def run(quick: bool) -> report.Report:
    """Count. `quick` changes nothing."""
    del quick
    rows: list[list[Any]] = []
    missed: list[str] = []
    for package in PACKAGES:
        modules = {path: ast.parse(path.read_text()) for path in sorted((ROOT / package).rglob("*.py"))}
        lines = [len(path.read_text().splitlines()) for path in modules]
        functions = [one for tree in modules.values() for one in _functions(tree)]
        lengths = [(one.end_lineno or 0) - one.lineno + 1 for one in functions]
        widest = max(
            (_width(one), f"{path.relative_to(ROOT)}") for path, tree in modules.items() for one in _inits(tree)
        )
        rows.append(
            [
                package,
                len(modules),
                statistics.median(lines),
                max(lines),
                statistics.median(lengths),
                sum(length > LONGEST_FUNCTION_LINES for length in lengths),
                f"{widest[0]} ({widest[1]})",
                len(_arrows(package, modules)),
            ]
        )
        if widest[0] > MOST_COLLABORATORS:
            missed.append(f"{widest[1]}: a constructor needs {widest[0]} values, wanted at most {MOST_COLLABORATORS}")
    passed = filter_modules()
    return report.Report(
        "structure of the source",
        [
            "package", "modules", "lines, median", "longest", "function, median", f"over {LONGEST_FUNCTION_LINES}",
            "widest constructor", "arrows between folders",
        ],
        rows,
        {"modules that one filter call passes": f"{len(passed)}: {', '.join(passed)}"},
        missed,
    )  # fmt: skip


def filter_modules() -> list[str]:
    """Return the modules of ours that one filter call with a fitting node passes, in the order of their first call."""
    core, verbs = handlers.cluster(["node-0", "node-1"], 0)
    del core
    body = orjson.dumps({"Pod": handlers.pending_body(0), "Nodes": None, "NodeNames": ["node-0", "node-1"]})
    passed: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES:
            passed[frame.f_globals["__name__"]] = None

    sys.setprofile(note)
    try:
        verbs.filter(body)
    finally:
        sys.setprofile(None)
    return list(passed)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _inits(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (one for one in _functions(tree) if one.name == "__init__")


def _width(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of required values, without `self` and those with defaults."""
    arguments = function.args
    return len(arguments.args) - 1 - len(arguments.defaults) + sum(one is None for one in arguments.kw_defaults)


def _arrows(package: str, modules: dict[pathlib.Path, ast.Module]) -> set[tuple[str, str]]:
    """Return the imports between folders of a package; each module of its top level counts as a folder."""

    def box(parts: tuple[str, ...]) -> str:
        return parts[1] if len(parts) > 1 else ""

    arrows: set[tuple[str, str]] = set()
    for path, tree in modules.items():
        source = box(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
                parts = tuple((node.module or "").split("."))
                targets = [box(parts)] if len(parts) > 1 else [alias.name for alias in node.names]
                arrows.update((source, target) for target in targets if target != source)
    return arrows
