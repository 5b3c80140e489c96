"""The device plugin as a real process on a fake driver, for tests and benchmarks."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from lab import fake_driver, hami_core, service_process


class PluginProcess(service_process.ServiceProcess):
    """A device plugin in a separate process."""

    def __init__(
        self,
        folder: pathlib.Path,
        driver: fake_driver.FakeDriver | None,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """Make a plugin process; `start` runs it.

        Args:
            folder: The folder of its log, its library folder and its boot id.
            driver: The driver that it loads; None is the machine's own.
            arguments: Its flags, but those of this folder.
            environment: More variables.
            within: A command in which it runs.
        """
        self.hook_path = folder / "hook"
        self.boot_id_file = folder / "boot-id"
        super().__init__(
            "device_plugin",
            {"health": "--health-bind"},
            ["--hook-path", str(self.hook_path), "--boot-id-file", str(self.boot_id_file), *arguments],
            folder / "plugin.log",
            {**(driver.environment() if driver else {}), **(environment or {})},
            within,
        )
        hami_core.place(self.hook_path)
        self.reboot("first")

    def reboot(self, name: str) -> None:
        """Change the boot id; takes effect when the plugin starts."""
        self.boot_id_file.write_text(f"{name}\n")


def host_cdi(folder: pathlib.Path, driver: fake_driver.FakeDriver, root: pathlib.Path | None = None) -> pathlib.Path:
    """Write a CDI specification of the driver's GPUs as nvidia-ctk makes them.

    Args:
        folder: The folder of the file.
        driver: The driver with the GPUs.
        root: The driver's root, which has device nodes; without one `/dev/null` replaces each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {
                "name": gpu.uuid,
                "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{gpu.minor}", "hostPath": "/dev/null"}]},
            }
            for gpu in driver.gpus
        ],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": f"{root}/dev/nvidiactl" if root else "/dev/null"}],
        },
    }
    (folder / "nvidia.json").write_text(json.dumps(spec))
    return folder


@contextlib.contextmanager
def running(plugin: PluginProcess) -> Iterator[PluginProcess]:
    """Run a ready plugin until the context ends."""
    plugin.start()
    try:
        plugin.wait_ready()
        yield plugin
    finally:
        plugin.stop()
