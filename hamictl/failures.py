"""The error of a command, for its user: one sentence and a hint, never a traceback."""

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
