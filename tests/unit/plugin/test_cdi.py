import json
import pathlib

import pytest

from device_plugin import cdi, delivery, edits, gpu_source
from gpu_sharing.core import identifiers

UID = identifiers.PodUid("11111111-2222")
WANTED = edits.Edits({"B": "2", "A": "1"}, (edits.Mount("/h", "/c", read_only=False),), ("/dev/nvidia0",))


def test_a_specification_is_written_once_and_said_to_be_new(tmp_path: pathlib.Path) -> None:
    store = cdi.Store(tmp_path / "cdi")

    assert store.write("abc-1", UID, WANTED)
    assert not store.write("abc-1", UID, WANTED)
    (written,) = store.all()
    spec = json.loads(written.path.read_text())
    assert (written.name, written.pod_uid) == ("hami.io/vgpu=abc-1", UID)
    assert spec == {
        "cdiVersion": "0.5.0",
        "kind": "hami.io/vgpu",
        "devices": [
            {
                "name": "abc-1",
                "containerEdits": {
                    "env": ["A=1", "B=2"],
                    "mounts": [
                        {"hostPath": "/h", "containerPath": "/c", "options": ["rw", "nosuid", "nodev", "rbind"]}
                    ],
                    "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/nvidia0", "permissions": "rw"}],
                },
            }
        ],
    }
    store.delete(written)
    assert list(store.all()) == []


def test_a_folder_that_takes_nothing_is_an_error_that_names_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(cdi.NotWritten, match="file"):
        cdi.Store(tmp_path / "file").write("abc-1", UID, WANTED)


def host(tmp_path: pathlib.Path) -> cdi.HostSpecs:
    (tmp_path / "nvidia.yaml").write_text(
        """
cdiVersion: 0.6.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}
- name: all
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia1}]}
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void, OTHER=1]
  hooks: [{hookName: createContainer, path: /usr/bin/nvidia-ctk}]
"""
    )
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"kind":"x/y","devices":[{"name":"GPU-a"}]}')
    return cdi.host_specs([tmp_path, tmp_path / "missing"])


def test_the_hosts_own_edits_are_copied_for_each_gpu_and_ours_win(tmp_path: pathlib.Path) -> None:
    """A broken file of somebody else does no harm."""
    found = host(tmp_path)
    device = gpu_source.Device(identifiers.GpuUuid("GPU-a"), 0, "T", 1, 0)

    whole = edits.container_edits(delivery.of("cdi", [device], ["GPU-a"], found))

    assert found.version == "0.6.0"
    assert whole == {
        "env": ["OTHER=1", "NVIDIA_VISIBLE_DEVICES=GPU-a"],
        "hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-ctk"}],
        "deviceNodes": [{"path": "/dev/nvidia0"}],
    }
    assert found.edits_for("GPU-b", 7) is None


@pytest.mark.parametrize(
    ("setting", "index", "runtime_class", "way"),
    [("auto", 0, False, "cdi"), ("auto", 1, True, "envvar"), ("auto", 1, False, None), ("cdi", 1, True, None),
     ("device-nodes", 1, False, "device-nodes")],
)  # fmt: skip
def test_delivery_takes_what_the_host_offers(
    tmp_path: pathlib.Path, setting: str, index: int, runtime_class: bool, way: str | None
) -> None:
    device = gpu_source.Device(identifiers.GpuUuid("GPU-a"), index, "T", 1, 0)

    assert delivery.choose(setting, [device], host(tmp_path), runtime_class=runtime_class) == way


def test_other_ways_of_delivery() -> None:
    device = gpu_source.Device(identifiers.GpuUuid("GPU-a"), 0, "T", 1, 3)
    none = cdi.HostSpecs("0.5.0", {}, ())

    mounts = delivery.of("volume-mounts", [device], ["GPU-a"], none)
    nodes = delivery.of("device-nodes", [device], ["GPU-a"], none)

    assert mounts.environment == {"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices"}
    assert mounts.mounts == (edits.Mount("/dev/null", "/var/run/nvidia-container-devices/GPU-a"),)
    assert nodes.device_nodes[0] == "/dev/nvidia3"
    assert delivery.of("envvar", [device], ["GPU-a"], none).environment == {"NVIDIA_VISIBLE_DEVICES": "GPU-a"}
