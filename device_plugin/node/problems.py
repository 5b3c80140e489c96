"""What is wrong with how a node is set up, by error code: logged, counted, published for `hamictl doctor` and pages.

A problem is not the fault of one GPU (that is its health) nor of one container (that is a refusal): it stays until the
node is set up differently, and the plugin goes on beside it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from gpu_sharing.core import error_codes

log = structlog.get_logger("problems")


class Problems:
    """The problems that a node has now.

    Args:
        changed: Called after each change, so that the node's annotation is written.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._current: dict[tuple[error_codes.Code, str], str] = {}

    def report(self, code: error_codes.Code, sentence: str, about: str = "") -> None:
        """Set a problem, or replace its sentence.

        Args:
            code: What is wrong.
            sentence: With the values of this node: what was found where.
            about: The GPU's UUID where one GPU has it; empty for the node.
        """
        if self._current.get((code, about)) == sentence:
            return
        self._current[code, about] = sentence
        log.error("a problem of the node", error_code=code, device=about or None, cause=sentence)
        self._changed()

    def clear(self, code: error_codes.Code, about: str = "") -> None:
        """Remove a problem that is over."""
        if self._current.pop((code, about), None) is not None:
            log.info("a problem of the node is over", error_code=code, device=about or None)
            self._changed()

    def report_or_clear(self, code: error_codes.Code, sentence: str) -> None:
        """Set a problem of the node, or remove it where the sentence is empty."""
        if sentence:
            self.report(code, sentence)
        else:
            self.clear(code)

    def replace(self, code: error_codes.Code, sentences: Mapping[Any, str]) -> None:
        """Set the problems of a code to these sentences by subject; the others of the code are over."""
        self.keep(code, sentences)
        for about, sentence in sentences.items():
            self.report(code, sentence, about)

    def keep(self, code: error_codes.Code, subjects: Iterable[str]) -> None:
        """Remove the problems of a code whose subject is not among these, such as GPUs that are gone."""
        kept = set(subjects)
        for found, about in list(self._current):
            if found == code and about not in kept:
                self.clear(code, about)

    @property
    def current(self) -> Mapping[tuple[error_codes.Code, str], str]:
        """Sentences by code and subject."""
        return self._current

    def sentences(self) -> dict[str, str]:
        """One sentence for each code, as `records.encode_problems` takes them."""
        found: dict[str, str] = {}
        for (code, about), sentence in sorted(self._current.items()):
            text = f"{about}: {sentence}" if about else sentence
            found[code] = f"{found[code]}; {text}" if code in found else text
        return found
