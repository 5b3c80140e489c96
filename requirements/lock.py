"""Resolve `pyproject.toml` into lock files, with hashes and without the address of any index.

`run.txt` is what the demo and the services need; `dev.txt` adds what tests and checks need, `image.txt` and
`node-image.txt` are what the two images hold, `docs.txt` is what builds the site, `compiler.txt` the C
compiler of machines without one, all of the same versions. Run as
`make lock`; `make lock ARGS=--upgrade` moves to the newest versions.
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
COMMON = ["--python-version", "3.11", "--universal", "--generate-hashes", "--no-emit-index-url", "--no-annotate"]
COMMON += ["--no-header", "--quiet"]


def compile_lock(out: str, *args: str) -> None:
    """Write one lock file; versions it already holds are kept unless `--upgrade` is given."""
    command = [str(pathlib.Path(sys.executable).with_name("uv")), "pip", "compile", *COMMON]
    subprocess.run([*command, *args, "-o", f"requirements/{out}", *sys.argv[1:]], cwd=HERE.parent, check=True)  # noqa: S603


if __name__ == "__main__":
    project = "pyproject.toml"
    everything = (project, "--extra", "cli", "--extra", "webui", "--group", "build")
    compile_lock("run.txt", *everything)
    compile_lock("dev.txt", *everything, "--group", "dev", "-c", "requirements/run.txt")
    compile_lock("image.txt", project, "--extra", "extender", "--extra", "webui", "-c", "requirements/run.txt")
    compile_lock("node-image.txt", project, "--extra", "node", "-c", "requirements/run.txt")
    compile_lock("compiler.txt", "--group", "compiler")
    compile_lock("docs.txt", "--group", "docs", "-c", "requirements/dev.txt")
