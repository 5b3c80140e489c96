"""Build both images: `python -m images.build`, as root, with `mmdebstrap buildah busybox-static` from apt.

The bases are built from Debian packages: they have Python and no shell. With a container engine, run it with
`--wheels-only` and then `docker build --target hami -f images/Dockerfile .`.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
BUILD = ROOT / "build"
SUITE = "bookworm"
RUNTIME_PACKAGES = ("python3", "libstdc++6")
BUILD_PACKAGES = ("python3", "python3-pip", "busybox-static", "ca-certificates", "dash", "coreutils", "findutils")
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
TARGETS = ("hami", "hami-node")
PACKAGES = "usr/share/packages"
"""In the base: name and version of each Debian package, because the package database is removed."""
_GONE = (
    "usr/bin/dpkg* usr/bin/update-alternatives usr/bin/py3* usr/bin/pdb3* usr/bin/pydoc3* usr/bin/pygettext3* bin/tar "
    "usr/lib/dpkg var/lib/dpkg usr/share/doc usr/share/man usr/share/locale usr/share/info"
)
_RUNTIME_HOOKS = (
    f'for one in "$1"/var/cache/apt/archives/*.deb; do dpkg-deb --show "$one"; done | sort > "$1/{PACKAGES}"',
    f'cd "$1" && rm -rf {_GONE}',
)
EPOCH = "0"
"""The time of every file, so that builds are reproducible."""


def run(*command: str, **environment: str) -> str:
    """Return the output of a command; if it fails, the process ends with its error message."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} … failed:\n{(done.stderr or done.stdout)[-3000:]}")
    return done.stdout


def fetch_wheels(folder: pathlib.Path) -> None:
    """Download the images' wheels by their hashes, for the images' Python; and build our own wheel."""
    pip = (sys.executable, "-m", "pip")
    platforms = [part for one in PLATFORMS for part in ("--platform", one)]
    for name in ("image", "node-image"):
        run(
            *pip,
            "download",
            "--quiet",
            "--require-hashes",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--python-version",
            "3.11",
            *platforms,
            "--dest",
            str(folder),
            "-r",
            f"requirements/{name}.txt",
        )
    for old in folder.glob("hami_py-*.whl"):
        old.unlink()
    run(
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        ".",
        SOURCE_DATE_EPOCH="315532800",
    )


def make_base(name: str, packages: Sequence[str], folder: pathlib.Path) -> str:
    """Build an image of Debian packages without running their scripts. Returns its name."""
    variant = ["--variant=essential", "--aptopt=APT::Install-Recommends no"]
    if name == "runtime":
        variant = ["--variant=extract", *(f"--extract-hook={hook}" for hook in _RUNTIME_HOOKS)]
    tar = folder / f"{name}.tar"
    run("mmdebstrap", *variant, f"--include={','.join(packages)}", SUITE, str(tar), SOURCE_DATE_EPOCH=EPOCH)
    (folder / "Containerfile").write_text(f"FROM scratch\nADD {name}.tar /\n")
    image = f"localhost/hami-{name}"
    buildah("bud", "--quiet", "--timestamp", EPOCH, "--tag", image, str(folder))
    return image


def buildah(*arguments: str) -> str:
    """Return the output of buildah, with options that need no kernel feature."""
    return run("buildah", "--storage-driver", "vfs", *arguments, BUILDAH_ISOLATION="chroot")


def bill_of_materials(target: str, image: str) -> dict[str, Any]:
    """Return the bill of materials of an image, as CycloneDX 1.5: Debian packages and Python distributions."""
    container = buildah("from", image).strip()
    try:
        root = pathlib.Path(buildah("mount", container).strip())
        components = [
            _component(name, version, f"pkg:deb/debian/{name}@{version}")
            for name, version in (one.split("\t") for one in (root / PACKAGES).read_text().splitlines())
        ]
        for one in metadata.distributions(path=[str(root / "opt/hami")]):
            name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
            components.append(_component(name, one.version, f"pkg:pypi/{name}@{one.version}"))
    finally:
        buildah("rm", container)
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "container", "name": target}},
        "components": sorted(components, key=lambda one: one["purl"]),
    }  # fmt: skip


def _component(name: str, version: str, purl: str) -> dict[str, str]:
    return {"type": "library", "name": name, "version": version, "purl": purl}


def main() -> None:
    """Build the images, and print their sizes."""
    parser = argparse.ArgumentParser(prog="python -m images.build", description=__doc__)
    parser.add_argument("--wheels-only", action="store_true", help="only download what the Dockerfile copies")
    options = parser.parse_args()
    wheels, out = BUILD / "wheels", BUILD / "images"
    for folder in (wheels, out):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s  {what}", file=sys.stderr, flush=True)

    fetch_wheels(wheels)
    say("wheels are here")
    if options.wheels_only:
        return
    with tempfile.TemporaryDirectory(prefix="images-") as text:
        folder = pathlib.Path(text)
        base = make_base("runtime", RUNTIME_PACKAGES, folder)
        say("the base is made")
        build_base = make_base("build", BUILD_PACKAGES, folder)
        say("the base of the build stage is made")
    facts = {}
    for target in TARGETS:
        image = f"localhost/{target}"
        buildah(
            "bud",
            "--quiet",
            "--layers",
            "--timestamp",
            EPOCH,
            "--target",
            target,
            "--build-arg",
            f"BASE={base}",
            "--build-arg",
            f"BUILD_BASE={build_base}",
            "--tag",
            image,
            "-f",
            "images/Dockerfile",
            ".",
        )
        archive = out / f"{target}.tar"
        archive.unlink(missing_ok=True)
        buildah("push", "--quiet", image, f"oci-archive:{archive}")
        seen = json.loads(buildah("inspect", "--type", "image", image))
        facts[target] = {"digest": seen["FromImageDigest"], "archive_mib": round(archive.stat().st_size / 2**20, 1)}
        (out / f"{target}.cdx.json").write_text(json.dumps(bill_of_materials(target, image), indent=2) + "\n")
        say(f"{target}: {facts[target]['archive_mib']} MiB compressed, {facts[target]['digest']}")
    (out / "images.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
