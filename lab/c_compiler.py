"""The C compiler of this machine, or that of the package `ziglang`: it builds the shared libraries that tests need."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys


class CompilerFailed(Exception):
    """The C compiler is missing, or rejects a source; the text names the cause."""


def command() -> list[str]:
    """Return the beginning of a command line that compiles C.

    Raises:
        CompilerFailed: Neither `cc` nor `gcc` is on the path, and ziglang is not installed.
    """
    found = shutil.which("cc") or shutil.which("gcc")
    if found is not None:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined"]
    raise CompilerFailed(
        "there is no C compiler: install one (apt: gcc libc6-dev), or "
        "`pip install --require-hashes -r requirements/compiler.txt` as `make setup` does"
    )


def build_library(source: pathlib.Path, library: pathlib.Path, *flags: str) -> None:
    """Compile one source file into a shared library.

    Raises:
        CompilerFailed: There is no compiler, or the source has an error.
    """
    line = [*command(), "-shared", "-fPIC", *flags, "-o", str(library), str(source)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise CompilerFailed(f"{source.name} does not compile:\n{done.stderr[-3000:]}")
