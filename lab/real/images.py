"""Two container images without any registry: busybox, and the pause container that also is the init of a node.

Source: the archive layout of `docker save`, which containerd imports.
"""

import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence

from lab.real import build

BUSYBOX, PAUSE = "lab.local/busybox:1", "lab.local/pause:1"
_PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""


def make(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Write the archives, and `pause` as a program, into a folder.

    Raises:
        BuildFailed: There is no C compiler, or no static busybox.
    """
    busybox, compiler = shutil.which("busybox"), shutil.which("cc")
    if busybox is None or compiler is None:
        raise build.BuildFailed("container images need a C compiler and a static busybox (apt: gcc, busybox-static)")
    source = folder / "pause.c"
    source.write_text(_PAUSE_SOURCE)
    command = [compiler, "-static", "-Os", "-s", "-o", str(folder / "pause"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise build.BuildFailed(f"the pause container does not compile:\n{done.stderr[-1000:]}")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    links = {f"bin/{name}": "busybox" for name in applets if name != "busybox"}
    _image(folder / "busybox.tar", BUSYBOX, {"bin/busybox": pathlib.Path(busybox)}, links, ["sh"])
    _image(folder / "pause.tar", PAUSE, {"bin/pause": folder / "pause"}, {}, ["/bin/pause"])
    return folder / "busybox.tar", folder / "pause.tar"


def of_program(path: pathlib.Path, name: str, program: pathlib.Path) -> pathlib.Path:
    """The archive of an image that holds one static program, found by its name."""
    _image(path, name, {f"bin/{program.name}": program}, {}, [program.name])
    return path


def of_library(path: pathlib.Path, name: str, target: str, library: pathlib.Path) -> pathlib.Path:
    """The archive of an image that holds a shell and one library, as HAMi's image holds HAMi-core.

    Args:
        path: The archive to write.
        name: What pods call the image.
        target: Where the library lies in it.
        library: The library.

    Raises:
        BuildFailed: There is no static busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise build.BuildFailed("an image with a shell needs a static busybox (apt: busybox-static)")
    links = {f"bin/{applet}": "busybox" for applet in ("sh", "cmp", "cp", "chmod", "mv", "sleep", "ls")}
    _image(path, name, {"bin/busybox": pathlib.Path(busybox), target: library}, links, ["sh"])
    return path


def _image(
    path: pathlib.Path,
    name: str,
    files: Mapping[str, pathlib.Path],
    links: Mapping[str, str],
    command: Sequence[str],
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev", "run"):
            _add(layer, folder, kind=tarfile.DIRTYPE)
        for target, source in files.items():
            _add(layer, target, source.read_bytes())
        for target, to in links.items():
            _add(layer, target, kind=tarfile.SYMTYPE, link=to)
        _add(layer, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}, "history": [{"created_by": "lab"}],
    }).encode()  # fmt: skip
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, config_name, config)
        _add(archive, f"{digest}/layer.tar", content)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    item = tarfile.TarInfo(name)
    item.mode, item.type, item.linkname, item.size = 0o755, kind, link, len(data)
    archive.addfile(item, io.BytesIO(data))
