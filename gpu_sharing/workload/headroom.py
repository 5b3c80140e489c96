"""A callback before the memory of the slice is used up."""

from collections.abc import Callable

from gpu_sharing.workload import sampling, slices
from gpu_sharing.workload.errors import require_range


class HeadroomWatch:
    """Calls back once each time that the headroom falls below a limit.

    It is armed again once the headroom is a tenth above the limit. While it is not known, nothing is called.

    Args:
        callback: Called with the headroom in MiB.
        below_mib: The limit.
        interval_seconds: Time between two reads of the thread.
        read: Returns the headroom; without it `slices.headroom_mib`.

    Raises:
        WorkloadError: A number is out of range.
    """

    def __init__(
        self,
        callback: Callable[[int], None],
        *,
        below_mib: int,
        interval_seconds: float = 1.0,
        read: Callable[[], int | None] | None = None,
    ) -> None:
        require_range("below_mib", below_mib, 1, 2**31 - 1)
        self._callback = callback
        self._below_mib = below_mib
        self._read = read or slices.headroom_mib
        self._is_armed = True
        self._thread = sampling.Periodic(self.check, interval_seconds=interval_seconds, name="gpu-headroom")

    @property
    def is_running(self) -> bool:
        """Whether its thread lives, in this process."""
        return self._thread.is_running

    def check(self) -> int | None:
        """Read the headroom, and call back if it has fallen below. Returns it; None where it is not known.

        A program that wants no thread calls this itself, for example once a batch.
        """
        headroom = self._read()
        if headroom is None:
            return None
        if headroom >= self._below_mib * 1.1:
            self._is_armed = True
        elif headroom < self._below_mib and self._is_armed:
            self._is_armed = False
            self._callback(headroom)
        return headroom

    def start(self) -> None:
        """Start the thread that checks."""
        self._thread.start()

    def stop(self) -> bool:
        """Stop the thread. Returns whether it has ended."""
        return self._thread.stop()
