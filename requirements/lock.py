"""Resolve `pyproject.toml` into lock files, with hashes and without the address of any index.

`run.txt` is what the demo and the services need; `dev.txt` adds what tests and checks need, and `docs.txt` is what
builds the site, all at the same versions. Run as `make lock`; `make lock ARGS=--upgrade` moves to the newest versions.
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
COMMON = ["--python-version", "3.11", "--universal", "--generate-hashes", "--no-emit-index-url", "--no-annotate"]
COMMON += ["--no-header", "--quiet"]
RUN = ["pyproject.toml", "--extra", "cli", "--extra", "webui", "--group", "build"]


def compile_lock(out: str, *args: str) -> None:
    """Write one lock file; versions it already holds are kept unless `--upgrade` is given."""
    command = [str(pathlib.Path(sys.executable).with_name("uv")), "pip", "compile", *COMMON]
    subprocess.run([*command, *args, "-o", f"requirements/{out}", *sys.argv[1:]], cwd=HERE.parent, check=True)  # noqa: S603


if __name__ == "__main__":
    compile_lock("run.txt", *RUN)
    compile_lock("dev.txt", *RUN, "--group", "dev", "-c", "requirements/run.txt")
    compile_lock("docs.txt", "--group", "docs", "-c", "requirements/dev.txt")
