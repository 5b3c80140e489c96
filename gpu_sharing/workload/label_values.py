"""Values of labels, bounded in length and number: a value may come out of a user's request."""

import logging
import threading

from gpu_sharing.core import error_codes
from gpu_sharing.workload import forks
from gpu_sharing.workload.errors import require_range

OTHER = "other"
LONGEST = 64
log = logging.getLogger("gpu_sharing.workload")


class LabelValues:
    """Accepts the first distinct values of a label; each further one becomes `other`.

    Args:
        label: Name of the label, for the log line.
        most: The maximum number of distinct values.

    Raises:
        WorkloadError: `most` is out of range.
    """

    def __init__(self, label: str, most: int) -> None:
        require_range(f"most values of {label}", most, 1, 10_000)
        self._label = label
        self._most = most
        self._accepted: set[str] = set()
        self._is_full = False
        self.renew_locks()
        forks.watch(self)

    def renew_locks(self) -> None:
        """Replace the lock; see `forks`."""
        self._lock = threading.Lock()

    def bounded(self, value: object) -> str:
        """Return the value as it may stand in a label: printable, at most 64 characters, or `other`."""
        text = "".join(one if one.isprintable() else "?" for one in str(value)[:LONGEST])
        if text in self._accepted:
            return text
        with self._lock:
            if len(self._accepted) < self._most:
                self._accepted.add(text)
            is_full, self._is_full = self._is_full, text not in self._accepted or self._is_full
        if text in self._accepted:
            return text
        if not is_full:
            log.warning(
                "%s: label %s has %d values; further ones are counted as %s",
                error_codes.WORKLOAD_LABELS_FULL, self._label, self._most, OTHER,
            )  # fmt: skip
        return OTHER
