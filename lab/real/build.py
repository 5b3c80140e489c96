"""Build a real control plane and a real node from their Go modules, once, into a cache outside the tree.

`k8s.io/kubernetes` cannot be installed by `go install`, because its go.mod replaces its staging modules by folders; a
throw-away module that maps each of them to its published version builds it. Takes about 12 minutes on 2 cores with
empty caches, and nothing when it was done before. `HAMI_KUBERNETES=v1.30.14` selects another version; then only the
API server, the scheduler and kubectl are built.

Source: https://go.dev/ref/mod#go-mod-file-replace; Kubernetes publishes staging modules as v0.X.Y for v1.X.Y.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

DEFAULT_VERSION = "v1.36.3"
"""The Kubernetes on which everything is tested."""
OTHER_VERSIONS = ("v1.30.14", "v1.37.2")
"""The oldest that is promised, and the newest; of these only what tests of scheduling need is built."""
KUBERNETES_VERSION = os.environ.get("HAMI_KUBERNETES") or DEFAULT_VERSION
MINOR = int(KUBERNETES_VERSION.split(".")[1])
ETCD_VERSION = "v3.7.3"
CONTAINERD_VERSION = "v2.4.2"
_IS_DEFAULT = KUBERNETES_VERSION == DEFAULT_VERSION
_CONTROL_PLANE = ("kube-apiserver", "kube-scheduler", "kubectl")
_KUBERNETES = (*_CONTROL_PLANE, "kubelet", "kube-controller-manager") if _IS_DEFAULT else _CONTROL_PLANE
_ALL_CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
_CONTAINERD = _ALL_CONTAINERD if _IS_DEFAULT else ()
_NEED_C = ("kubelet", *_ALL_CONTAINERD)
"""Built with cgo: they read cgroups, mounts and namespaces through libc."""
_WITHOUT = "no_btrfs no_devmapper no_zfs"
"""Snapshotters of containerd that would need more libraries."""
_ETCD_MAIN = """package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
"""


class BuildFailed(Exception):
    """The binaries cannot be built here; the text names what is missing."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> pathlib.Path:
    """Return the cache of binaries: `HAMI_PY_CACHE`, or the user's cache."""
    if environment.get("HAMI_PY_CACHE"):
        return pathlib.Path(environment["HAMI_PY_CACHE"])
    base = environment.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "hami-py"


def folder_of_binaries() -> pathlib.Path:
    """Return the folder of the programs of these versions."""
    return cache_folder() / f"kubernetes-{KUBERNETES_VERSION}-etcd-{ETCD_VERSION}-containerd-{CONTAINERD_VERSION}"


def binaries() -> pathlib.Path:
    """The folder with the programs of a control plane and of a node, built if they are not there yet.

    Raises:
        BuildFailed: Go is not installed, or a build failed.
    """
    folder = folder_of_binaries()
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / name).exists() for name in (*_KUBERNETES, *_CONTAINERD, "etcd")):
        return folder
    with only_one(folder):
        _reuse_etcd(folder)
        build_programs(_prepare_etcd, {"etcd": "."}, folder)
        version = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"
        version += " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor="
        version += str(MINOR)
        build_programs(
            _prepare_kubernetes, {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES}, folder, version
        )
        if not _CONTAINERD:
            return folder
        packages = {name: f"github.com/containerd/containerd/v2/cmd/{name}" for name in _CONTAINERD}
        build_programs(_prepare_containerd, packages, folder)
    return folder


def _reuse_etcd(folder: pathlib.Path) -> None:
    """Link the etcd that was built beside another Kubernetes."""
    for built in cache_folder().glob(f"kubernetes-*-etcd-{ETCD_VERSION}-*/etcd"):
        if not (folder / "etcd").exists():
            (folder / "etcd").hardlink_to(built)


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
    """Lock the cache: one process builds at a time, the others wait and use its result."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _go() -> str:
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is None:
        raise BuildFailed(
            "building the real control plane needs Go 1.21 or newer (it fetches the version it needs by itself): "
            "install it from https://go.dev/dl or your distribution"
        )
    return found


def run_go(folder: pathlib.Path, *arguments: str, cgo: bool = False) -> str:
    """Return what `go` prints in a module's folder.

    Raises:
        BuildFailed: Go is not installed, or the command failed.
    """
    done = subprocess.run(
        [_go(), *arguments],
        cwd=folder,
        env={**os.environ, "CGO_ENABLED": "1" if cgo else "0", "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BuildFailed(f"go {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def build_programs(
    prepare: Callable[[pathlib.Path], None], packages: Mapping[str, str], folder: pathlib.Path, flags: str = ""
) -> None:
    """Build the packages that are not in the folder yet, in a temporary module.

    Args:
        prepare: Writes the module.
        packages: The package of each program.
        folder: Where the programs go.
        flags: For the linker.

    Raises:
        BuildFailed: A build failed.
    """
    missing = {name: package for name, package in packages.items() if not (folder / name).exists()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as temporary:
        module = pathlib.Path(temporary)
        prepare(module)
        for name, package in missing.items():
            started = time.monotonic()
            print(f"building {name} ...", file=sys.stderr, flush=True)
            # Built beside its place and renamed, so that a half-written binary is never run.
            arguments = ["-tags", _WITHOUT, "-ldflags", f"-s -w {flags}", "-o", str(folder / f"{name}.part"), package]
            run_go(module, "build", *arguments, cgo=name in _NEED_C)
            (folder / f"{name}.part").rename(folder / name)
            print(f"built {name} in {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr, flush=True)


def _prepare_etcd(module: pathlib.Path) -> None:
    (module / "go.mod").write_text("module lab\n\ngo 1.24\n")
    run_go(module, "get", f"go.etcd.io/etcd/server/v3@{ETCD_VERSION}")
    (module / "main.go").write_text(_ETCD_MAIN)
    run_go(module, "mod", "tidy")


def _prepare_kubernetes(module: pathlib.Path) -> None:
    (module / "go.mod").write_text("module lab\n")
    found = json.loads(run_go(module, "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES_VERSION}"))
    text = pathlib.Path(found["GoMod"]).read_text()
    staging = set(re.findall(r"^\s*(k8s\.io/\S+) v0\.0\.0$", text, re.M))
    staging |= set(re.findall(r"^\s*(k8s\.io/\S+) => \./staging", text, re.M))
    wanted_go = re.search(r"^go (\S+)", text, re.M)
    published = "v0" + KUBERNETES_VERSION[2:]
    replaced = "".join(f"\t{name} => {name} {published}\n" for name in sorted(staging))
    (module / "go.mod").write_text(
        f"module lab\n\ngo {wanted_go[1] if wanted_go else '1.24'}\n\n"
        f"require k8s.io/kubernetes {KUBERNETES_VERSION}\n\nreplace (\n{replaced})\n"
    )
    _import(module, (f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES))


def _prepare_containerd(module: pathlib.Path) -> None:
    (module / "go.mod").write_text("module lab\n\ngo 1.24\n")
    run_go(module, "get", f"github.com/containerd/containerd/v2@{CONTAINERD_VERSION}")
    _import(module, (f"github.com/containerd/containerd/v2/cmd/{name}" for name in _CONTAINERD))


def _import(module: pathlib.Path, packages: Iterable[str]) -> None:
    """Make the module need the packages, so that `go build` finds them and what they need."""
    lines = "".join(f'\t_ "{package}"\n' for package in packages)
    (module / "tools.go").write_text(f"//go:build tools\n\npackage lab\n\nimport (\n{lines})\n")
    run_go(module, "mod", "tidy")
