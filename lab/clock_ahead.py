"""A wall clock that jumps, for one process: what a step of the machine's clock, or a broken NTP, does to it."""

import pathlib

from lab import c_compiler

_SOURCE = pathlib.Path(__file__).with_name("clock_ahead.c")


class Clock:
    """The clock of the processes that start with `environment()`."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Make a clock that is right, with its files in a folder.

        Raises:
            CompilerFailed: There is no C compiler.
        """
        self._file = folder / "clock-ahead"
        self._library = folder / "clock_ahead.so"
        c_compiler.build_library(_SOURCE, self._library, "-O1", "-ldl")
        self.jump(0)

    def jump(self, ahead_seconds: int) -> None:
        """Set how far the clock is ahead of the machine's; negative is behind."""
        beside = self._file.with_suffix(".part")
        beside.write_text(str(ahead_seconds))
        beside.rename(self._file)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a process has this clock."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_AHEAD_FILE": str(self._file)}
