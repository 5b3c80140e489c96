"""What a command cannot do, as its user is told: one sentence and a hint, and never a traceback."""

from gpu_sharing.core import errors

NEGATIVE, FAILED = 1, 2
"""Exit statuses: the answer is no, or there is no answer. 0 is a yes."""


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
