"""The worst in words: docstrings that say nothing or open obscurely, and a unit that means another amount.

`python -m checks.words` prints one line a finding and fails if there is any. Better words than these are a matter of
review; `docs/reference/glossary.md` has one for each thing.
"""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = (
    "bench", "checks", "device_plugin", "docs", "fault_injector", "gpu_sharing", "hamictl", "images", "lab",
    "observability", "release", "scheduler_extender", "webui",
)  # fmt: skip
SHORTEST = 20
_OPENING = re.compile(r"(nobody|somebody|whoever|anybody|everybody|of which|who|whom|whose)\b", re.I)
_POINTER = re.compile(r"See `[\w.]+`\.$")
_MEGABYTES = re.compile(r"(?<![\w.])MB\b|\d\s?MB\b|\}MB\b")
MEGABYTES_ALLOWED = frozenset({
    "checks/words.py", "device_plugin/node/node_events.py", "gpu_sharing/core/event_reasons.py",
    "gpu_sharing/core/placement.py", "gpu_sharing/core/quotas.py", "gpu_sharing/core/rejections.py",
    "gpu_sharing/core/requests.py",
    "hamictl/demo_scenario.py",
    "scheduler_extender/report/event_notes.py",
})  # fmt: skip
"""Where the event texts are made, or compared, that say MB because HAMi's say so and mean MiB."""


def findings(name: str, source: str) -> Iterator[str]:
    """Yield `path:line: what is wrong` for one module.

    Args:
        name: Its path from the root.
        source: Its text.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        line = node.body[0].lineno
        if len(text) < SHORTEST and not _POINTER.match(text):
            yield f"{name}:{line}: a docstring of {len(text)} characters says nothing: {text!r}"
        if _OPENING.match(text):
            yield f"{name}:{line}: open with a verb or a noun of the domain, not {text.split()[0]!r}"
    if name not in MEGABYTES_ALLOWED:
        for number, content in enumerate(source.splitlines(), 1):
            if _MEGABYTES.search(content):
                yield f"{name}:{number}: MB is 1,000,000 bytes; write MiB"


def main() -> int:
    """Check every package. Returns the exit status: 1 if there is a finding."""
    found = [
        finding
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for finding in findings(str(path.relative_to(ROOT)), path.read_text())
    ]
    print("\n".join(found) if found else "Words: no findings.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
