"""A fake of NVIDIA's container runtime: adds the fake driver to containers that request it, then runs runc.

As with the real one, a container without `NVIDIA_VISIBLE_DEVICES` gets nothing, and one that requests MIG's control
files without CAP_SYS_ADMIN does not start.

Source: NVIDIA/nvidia-container-toolkit, internal/config/image and cmd/nvidia-container-runtime-hook.
"""

import json
import os
import pathlib
import stat
import sys
from collections.abc import Mapping

_NOTHING = ("", "void", "none")
_MIG = ("NVIDIA_MIG_MONITOR_DEVICES", "NVIDIA_MIG_CONFIG_DEVICES")
_SCRIPT = """#!{python}
import sys
sys.path.insert(0, {project!r})
from lab.real import nvidia_runtime
nvidia_runtime.main({runc!r}, {environment!r}, {tools!r})
"""


def write(
    path: pathlib.Path, runc: str, environment: Mapping[str, str], tools: Mapping[str, pathlib.Path]
) -> pathlib.Path:
    """Write the program that containerd runs in place of runc.

    Args:
        path: Where.
        runc: The real one.
        environment: Variables of the fake driver, whose folders are mounted with them.
        tools: The driver's programs by their paths in containers, for those that request the capability `compute`.
    """
    project = str(pathlib.Path(__file__).parents[2])
    files = {inside: str(outside) for inside, outside in tools.items()}
    text = _SCRIPT.format(python=sys.executable, project=project, runc=runc, environment=dict(environment), tools=files)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main(runc: str, environment: Mapping[str, str], tools: Mapping[str, str]) -> None:
    """Edit the container that is about to be created, if one is, and become runc."""
    arguments = sys.argv[1:]
    if "create" in arguments and "--bundle" in arguments:
        config = pathlib.Path(arguments[arguments.index("--bundle") + 1]) / "config.json"
        spec = json.loads(config.read_text())
        if with_driver(spec, environment, tools):
            config.write_text(json.dumps(spec))
    os.execv(runc, [runc, *arguments])


def with_driver(spec: dict[str, object], environment: Mapping[str, str], tools: Mapping[str, str]) -> bool:
    """Add the driver to a container's OCI specification, in place. Returns whether it requests it.

    Raises:
        SystemExit: It requests something that it may not have.
    """
    process, mounts = spec["process"], spec["mounts"]
    assert isinstance(process, dict)
    assert isinstance(mounts, list)
    asked = dict(one.partition("=")[::2] for one in process["env"])
    if asked.get("NVIDIA_VISIBLE_DEVICES", "") in _NOTHING:
        return False
    privileged = "CAP_SYS_ADMIN" in process["capabilities"].get("bounding", ())
    if not privileged and any(asked.get(name) for name in _MIG):
        raise SystemExit("nvidia-container-runtime: cannot set MIG_MONITOR_DEVICES in non privileged container")
    for name, value in environment.items():
        process["env"].append(f"{name}={value}")
        folder = value if name == "LD_LIBRARY_PATH" else str(pathlib.Path(value).parent)
        mounts.append({"destination": folder, "source": folder, "type": "bind", "options": ["rbind", "rw"]})
    for inside, outside in tools.items() if "compute" in asked.get("NVIDIA_DRIVER_CAPABILITIES", "") else ():
        mounts.append({"destination": inside, "source": outside, "type": "bind", "options": ["rbind", "ro"]})
    return True
