"""Problems of a node's setup, by error code: logged, counted, and published for `hamictl doctor` and the pages.

A fault of one GPU is its health, and a container that must not start is a refusal. A problem stays until the node is
set up differently, and the plugin goes on.
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

    def report(self, code: error_codes.Code, sentence: str, subject: str = "") -> None:
        """Set a problem, or replace its sentence.

        Args:
            code: What is wrong.
            sentence: What was found where, with the values of this node.
            subject: The GPU's UUID where one GPU has the problem; empty for the node.
        """
        if self._current.get((code, subject)) == sentence:
            return
        self._current[code, subject] = sentence
        log.error("problem of the node", error_code=code, device=subject or None, cause=sentence)
        self._changed()

    def clear(self, code: error_codes.Code, subject: str = "") -> None:
        """Remove a problem that has ended."""
        if self._current.pop((code, subject), None) is not None:
            log.info("problem of the node ended", error_code=code, device=subject or None)
            self._changed()

    def report_or_clear(self, code: error_codes.Code, sentence: str) -> None:
        """Set a problem of the node, or remove it where the sentence is empty."""
        if sentence:
            self.report(code, sentence)
        else:
            self.clear(code)

    def replace(self, code: error_codes.Code, sentences: Mapping[Any, str]) -> None:
        """Set the problems of a code to these sentences by subject, and remove the others of the code."""
        self.keep(code, sentences)
        for subject, sentence in sentences.items():
            self.report(code, sentence, subject)

    def keep(self, code: error_codes.Code, subjects: Iterable[str]) -> None:
        """Remove the problems of a code whose subject is not among these, such as GPUs that are gone."""
        kept = set(subjects)
        for known, subject in list(self._current):
            if known == code and subject not in kept:
                self.clear(code, subject)

    @property
    def current(self) -> Mapping[tuple[error_codes.Code, str], str]:
        """Sentences by code and subject."""
        return self._current

    def sentences(self) -> dict[str, str]:
        """Return one text for each code, as `records.encode_problems` needs them."""
        texts: dict[str, str] = {}
        for (code, subject), sentence in sorted(self._current.items()):
            text = f"{subject}: {sentence}" if subject else sentence
            texts[code] = f"{texts[code]}; {text}" if code in texts else text
        return texts
