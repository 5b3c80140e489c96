"""The error of this package, and what it does not know, as values."""

from typing import NamedTuple

from gpu_sharing.core import error_codes, errors


class WorkloadError(errors.GpuSharingError):
    """A call that cannot be served, with a code of the registry.

    Attributes:
        code: Of `gpu_sharing.core.error_codes`.
    """

    def __init__(self, code: error_codes.Code, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code


class Problem(NamedTuple):
    """Something that is not known or contradicts itself; the rest is valid."""

    code: error_codes.Code
    sentence: str

    def __str__(self) -> str:
        """Return code and sentence, as they are printed."""
        return f"{self.code}: {self.sentence}"


def require_range(name: str, value: float, least: float, most: float) -> None:
    """Check an argument.

    Raises:
        WorkloadError: It is out of range.
    """
    if not least <= value <= most:
        raise WorkloadError(
            error_codes.WORKLOAD_BAD_SETTING, f"{name} is {value}; it has to be from {least:g} to {most:g}"
        )
