"""The error of a command, for its user: one sentence and a hint, never a traceback."""

import difflib
from collections.abc import Iterable

from gpu_sharing.core import errors

NEGATIVE, FAILED = 1, 2
"""Exit statuses: the answer is no, or there is no answer. 0 is yes."""


class CommandFailed(errors.GpuSharingError):
    """A command has no answer.

    Attributes:
        hint: What to try.
        status: The exit status.
    """

    def __init__(self, sentence: str, hint: str = "", status: int = FAILED) -> None:
        super().__init__(sentence)
        self.hint = hint
        self.status = status


def unknown(sentence: str, name: str, known: Iterable[str], *, hint: str = "", status: int = NEGATIVE) -> CommandFailed:
    """Return the failure for a name that does not exist, with the known name that is most similar to it."""
    similar = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), similar, 1)
    question = f"; did you mean {similar[near[0]]}?" if near else ""
    return CommandFailed(f"{sentence}{question}", hint, status)


def first_line(cause: BaseException) -> str:
    """Return the first line of an error's text that is not empty, or else the name of its type."""
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def no_kubeconfig() -> CommandFailed:
    """Return the failure of a command that needs a cluster, where no kubeconfig names one."""
    return CommandFailed("no kubeconfig: give --kubeconfig or set KUBECONFIG")
