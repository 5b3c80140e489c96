"""All errors; a rejection is not an error but a value (`rejections`).

Each error has two facts: whether a retry helps, and the exact message::

    GpuSharingError
    ├── SettingsError          the process cannot start; names the setting and the accepted values
    ├── BadQuantity            a request that cannot be read; carries the code and what to write instead
    ├── CorruptRecord          an annotation that does not decode; carries the part that did
    ├── FaultRefused           a fault that is not injected or recovered; carries the code and the reason
    └── KubernetesError        the API server refused or did not answer
        ├── NotFound           the object does not exist
        ├── Conflict           another write came first; retry on fresh state
        ├── Forbidden          an RBAC rule is missing, named in the message
        ├── Invalid            the API server refuses what we wrote; a retry cannot help
        ├── Expired            the resource version is too old; list again
        └── Unavailable        no answer, or not now; whether a write happened is unknown
"""

from gpu_sharing.core import error_codes


class GpuSharingError(Exception):
    """The root of all errors of this project."""


class SettingsError(GpuSharingError):
    """A setting the process cannot start with."""


class BadQuantity(GpuSharingError):
    """A quantity that cannot be read as what it stands for."""

    def __init__(self, code: error_codes.Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class CorruptRecord(GpuSharingError):
    """An annotation that does not decode. What cannot be read is never taken for "nothing"."""


class FaultRefused(GpuSharingError):
    """A fault that is not injected or recovered, with the code and the reason.

    Attributes:
        code: Of the registry.
    """

    def __init__(self, code: error_codes.Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class KubernetesError(GpuSharingError):
    """The API server refused or did not answer.

    Attributes:
        status: The HTTP status, 0 when there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(KubernetesError):
    """The object does not exist (any more)."""


class Conflict(KubernetesError):
    """The object is not as the write assumed: another UID, another version, already bound."""


class Forbidden(KubernetesError):
    """Our account may not do this."""


class Invalid(KubernetesError):
    """The API server refuses the content of the request."""


class Expired(KubernetesError):
    """The resource version or continue token is too old (410)."""


class Unavailable(KubernetesError):
    """No answer, or the server cannot answer now. A write may or may not have happened."""
