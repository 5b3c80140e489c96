"""What command lines are about, and the files that hold what they print."""

import difflib
import os
import pathlib
import re
from dataclasses import dataclass

from gpu_sharing.core import records

FOLDER = pathlib.Path(__file__).parent / "golden" / "hamictl"


@dataclass(frozen=True, slots=True)
class Subjects:
    """The cluster, files and addresses that command lines name."""

    places: dict[str, str]
    """What stands for each word in braces."""

    def normalised(self, text: str) -> str:
        """Without what differs from run to run: addresses, folders, identities, versions and times."""
        text = text.replace(self.places["folder"], "/FOLDER").replace(records.OUR_AGENT, "AGENT")
        text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
        text = re.sub(r"(?<!GPU-)\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UID", text)
        text = re.sub(r"(decision-id\": )\"[^\"]+\"", r'\1"DECISION"', text)
        text = re.sub(r"(resourceVersion\": )\"\d+\"", r'\1"VERSION"', text)
        text = re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", "TIME", text)
        return re.sub(r"\b\d{10}\b", "SECONDS", text)


def compare(name: str, shown: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("RENEW_GOLDENS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shown)
    golden = path.read_text() if path.exists() else ""
    difference = difflib.unified_diff(golden.splitlines(), shown.splitlines(), str(path), "what it prints", lineterm="")
    assert golden == shown, "\n".join(difference)
