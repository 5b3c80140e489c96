"""The error by which the kubelet does not start a container."""

from gpu_sharing.core import error_codes


class StartRefused(Exception):
    """A container must not be started.

    Attributes:
        code: For logs, events and the kubelet.
        retryable: Whether it helps to wait a moment: a watch or the kubelet may lag.
    """

    def __init__(self, code: error_codes.Code, sentence: str, *, retryable: bool = False) -> None:
        super().__init__(sentence)
        self.code = code
        self.retryable = retryable

    @property
    def text(self) -> str:
        """Message that `kubectl describe pod` shows."""
        return f"{self.code}: {self}. {error_codes.REGISTRY[self.code].remedy}"
