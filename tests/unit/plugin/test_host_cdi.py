"""What is believed of the CDI specifications that other programs left on the host."""

import json
import os
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.delivery import host_cdi
from gpu_sharing.core import nvidia

UUID = "GPU-a"


def spec(*names: str, common: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A specification that gives each of its devices a node of its own name."""
    devices = [{"name": name, "containerEdits": {"env": [f"OF={name}"]}} for name in names]
    return {"cdiVersion": "0.6.0", "kind": nvidia.CDI_KIND, "devices": devices, "containerEdits": common, **fields}


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Those of the CDI library, in its order."""
    found = tmp_path / "etc", tmp_path / "run"
    for folder in found:
        folder.mkdir()
    return found


def read(*folders: pathlib.Path) -> host_cdi.HostSpecs:
    return host_cdi.Reader(folders).read()


def test_common_edits_are_those_of_their_own_specification(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """After an update of the driver the other one names libraries that are gone."""
    (folders[0] / "old.json").write_text(json.dumps(spec("GPU-b", common={"env": ["OLD=1"]})))
    (folders[1] / "new.json").write_text(json.dumps(spec(UUID, common={"env": ["NEW=1"]})))

    assert read(*folders).gpu(UUID, 0).copied == ({"env": ["NEW=1"]}, {"env": [f"OF={UUID}"]})


@pytest.mark.parametrize("names", [(UUID, UUID), (UUID, "0"), ("0", UUID), ("0", "0")])
def test_the_later_folder_wins_and_the_earlier_one_is_told(
    folders: tuple[pathlib.Path, pathlib.Path], names: tuple[str, str]
) -> None:
    """By whichever name they define the GPU: nvidia-cdi-refresh renews /var/run/cdi, and nobody /etc/cdi."""
    (folders[0] / "nvidia.json").write_text(json.dumps(spec(names[0])))
    (folders[1] / "nvidia.json").write_text(json.dumps(spec(names[1])))

    found = read(*folders).gpu(UUID, 0)

    assert found.spec is not None
    assert found.spec.path == folders[1] / "nvidia.json"
    assert found.replaced == (folders[0] / "nvidia.json",)


def test_two_in_one_folder_are_a_conflict_and_none_counts(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """The runtime knows neither, also where a later folder has a third one."""
    for path in (folders[0] / "a.json", folders[0] / "b.json", folders[1] / "c.json"):
        path.write_text(json.dumps(spec(UUID)))

    found = read(*folders).gpu(UUID, 0)

    assert found.spec is None
    assert found.conflict == (folders[0] / "a.json", folders[0] / "b.json")


def test_a_folder_that_is_named_twice_is_read_once(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """/var/run leads to /run; a specification is no second one of itself."""
    (folders[1] / "nvidia.json").write_text(json.dumps(spec(UUID)))
    (folders[1].parent / "link").symlink_to(folders[1])

    found = read(folders[1], folders[1].parent / "link").gpu(UUID, 0)

    assert (found.name, found.replaced) == (UUID, ())


def test_instances_of_a_divided_gpu_lead_to_their_specification(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """nvidia-ctk writes no entry for a GPU in MIG mode, and none for instances that were made later."""
    (folders[0] / "a.json").write_text(json.dumps(spec("0:0", common={"env": ["A=1"]})))
    (folders[0] / "b.json").write_text(json.dumps(spec("MIG-7", common={"env": ["B=1"]})))
    found = read(*folders)

    assert found.divided(0, []).copied == ({"env": ["A=1"]},)
    assert found.divided(1, ["MIG-7"]).copied == ({"env": ["B=1"]},)
    assert len(found.divided(2, []).conflict) == 2
    assert read(folders[1]).divided(0, []) == host_cdi.Lookup()


def test_a_file_is_read_again_only_when_it_changes(
    folders: tuple[pathlib.Path, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin looks every five seconds, and a large YAML file takes a second to read."""
    path = folders[0] / "nvidia.json"
    path.write_text(json.dumps(spec(UUID)))
    reader = host_cdi.Reader(folders)
    assert reader.read().gpu(UUID, 0).name == UUID
    with monkeypatch.context() as patch:
        patch.setattr(host_cdi, "_parsed", pytest.fail)
        assert reader.read().gpu(UUID, 0).name == UUID
    path.with_suffix(".part").write_text(json.dumps(spec("GPU-b")))
    path.with_suffix(".part").rename(path)
    assert reader.read().gpu(UUID, 0).spec is None
    path.unlink()
    assert reader.read().specs == ()


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nkind: nvidia.com/gpu\ncontainerEdits: {env: *b}\n"


EDITS: list[Any] = [
    [], {"env": "A=1"}, {"env": ["A"]}, {"env": [7]}, {"mounts": [{}]}, {"mounts": [{"hostPath": "/a"}]},
    {"deviceNodes": [{"path": 7}]}, {"deviceNodes": [{"path": "/a", "hostPath": 7}]}, {"hooks": ["x"]},
    {"mounts": [{"hostPath": "/a", "containerPath": "/b", "options": "ro"}]},
    {"mounts": [{"hostPath": "/a", "containerPath": "/b", "options": [7]}]},
]  # fmt: skip
MALFORMED = [
    ("a.json", "{"), ("a.json", "[]"), ("a.json", "[" * 100_000), ("a.yaml", "a: ["), ("a.yaml", BOMB),
    ("a.yaml", "- x\n" * 150_000), ("a.json", "x" * (5 << 20)), ("a.json", "\udcff"),
    ("a.json", json.dumps({"kind": nvidia.CDI_KIND, "devices": {}})),
    ("a.json", json.dumps({"kind": nvidia.CDI_KIND, "devices": [7]})),
    ("a.json", json.dumps({"kind": nvidia.CDI_KIND, "devices": [{"name": 7}]})),
    ("a.json", json.dumps(spec("x", "x"))),
    ("a.json", json.dumps(spec(cdiVersion=7))), ("a.json", json.dumps(spec(cdiVersion="1" * 5000))),
    *[("a.json", json.dumps(spec() | {"containerEdits": common})) for common in EDITS],
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), MALFORMED, ids=map(str, range(len(MALFORMED))))
def test_what_is_malformed_is_left_out_and_its_neighbour_is_read(
    folders: tuple[pathlib.Path, pathlib.Path], name: str, text: str
) -> None:
    """Any vendor's tool writes there: its defect must not take the GPUs off the node, nor the plugin down."""
    (folders[0] / name).write_bytes(text.encode(errors="surrogateescape"))
    (folders[0] / "z.yaml").write_text(json.dumps(spec(UUID, common=None)))

    found = read(*folders)

    assert [one.path.name for one in found.specs] == ["z.yaml"]
    assert found.gpu(UUID, 0).copied == ({}, {"env": [f"OF={UUID}"]})


def test_what_is_no_file_neither_hangs_nor_ends_the_reading(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    """A pipe, a folder, a link to nowhere, and a folder that is a file."""
    os.mkfifo(folders[0] / "pipe.json")
    (folders[0] / "folder.json").mkdir()
    (folders[0] / "link.json").symlink_to("/nowhere")
    (folders[0] / "nvidia.json").write_text(json.dumps(spec(UUID)))
    file = folders[1] / "file"
    file.touch()

    assert [one.path.name for one in read(file, *folders).specs] == ["nvidia.json"]


KEYS = st.sampled_from(["name", "path", "env", "mounts", "hostPath"])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
        max_leaves=9,
    )
)
def test_no_value_anywhere_breaks_the_reading(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """It is believed, or it is left out."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed-specifications"
    folder.mkdir(exist_ok=True)
    for key in ("devices", "containerEdits"):
        (folder / f"{key}.json").write_text(json.dumps(spec() | {key: value}))

    for found in read(folder).specs:
        host_cdi.mismatch((found.common, *found.devices.values()), 0, "570.1", None)


def nodes(*paths: str) -> dict[str, Any]:
    return {"deviceNodes": [{"path": path} for path in paths]}


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (nodes("/dev/nvidia3", "/dev/nvidiactl"), ""),
        (nodes("/dev/nvidiactl"), ""),
        ({"deviceNodes": [{"path": "/dev/nvidia3", "hostPath": "/run/nvidia/driver/dev/nvidia3"}]}, ""),
        (nodes("/dev/nvidia2"), "the GPU is /dev/nvidia3"),
        (nodes("/dev/nvidia2", "/dev/nvidia3"), "it has /dev/nvidia2, /dev/nvidia3"),
        ({"deviceNodes": [{"path": "/dev/nvidia3", "hostPath": "/dev/nvidia2"}]}, "the GPU is /dev/nvidia3"),
        ({"mounts": [{"hostPath": "/usr/lib/libcuda.so.570.86.15", "containerPath": "/x"}]}, ""),
        ({"mounts": [{"hostPath": "/usr/lib/libcuda.so.535.1", "containerPath": "/x"}]}, "of driver 535.1, and"),
        ({"mounts": [{"hostPath": "/usr/lib/libnvidia-ml.so.535.1.2", "containerPath": "/x"}]}, "of driver 535.1.2"),
        ({"mounts": [{"hostPath": "/usr/lib/libcuda.so.1", "containerPath": "/x"}]}, ""),
    ],
)  # fmt: skip
def test_a_specification_of_another_driver_or_gpu_is_found_out(edits: dict[str, Any], expected: str) -> None:
    """It would start a container on another tenant's GPU, or without a driver."""
    found = host_cdi.mismatch(({}, edits), 3, "570.86.15", None)

    assert found == "" if not expected else expected in found


def test_without_a_minor_number_or_a_version_nothing_contradicts_them() -> None:
    """WSL has no such device nodes, and an older container runtime may hide /proc/driver."""
    mounts = {"mounts": [{"hostPath": "/usr/lib/libcuda.so.535.1", "containerPath": "/x"}]}

    assert host_cdi.mismatch((nodes("/dev/nvidia2"), mounts), None, "", None) == ""


def test_paths_that_are_not_on_the_host_are_found_as_the_host_would_find_them(tmp_path: pathlib.Path) -> None:
    """Through links that lead from the host's root, which is mounted elsewhere here."""
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "usr" / "lib" / "libx").touch()
    (tmp_path / "lib").symlink_to("/usr/lib")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "up").symlink_to("lib/../../usr/./lib")
    there = {
        "mounts": [{"hostPath": path, "containerPath": "/x"} for path in ("/lib/libx", "/usr/lib/libx", "/up/libx")]
    }

    assert host_cdi.mismatch((there,), 0, "", tmp_path) == ""
    for gone in ({"hooks": [{"path": "/usr/bin/nvidia-ctk"}]}, nodes("/dev/nvidiactl"),
                 {"mounts": [{"hostPath": "/loop/libx", "containerPath": "/x"}]}):  # fmt: skip
        assert "which is not on the host" in host_cdi.mismatch((there, gone), 0, "", tmp_path)


def test_the_version_of_the_driver_and_the_numbers_of_capabilities(tmp_path: pathlib.Path) -> None:
    """As the kernel module writes them, also the open one; nothing where it is not loaded."""
    assert (host_cdi.driver_version(tmp_path), host_cdi.capabilities(tmp_path)) == ("", {})
    (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "driver" / "nvidia-caps").mkdir()
    (tmp_path / "driver" / "nvidia-caps" / "mig-minors").write_text("config 1\ngpu0/gi1/access 12\nodd line here\n")
    assert host_cdi.capabilities(tmp_path) == {"config": 1, "gpu0/gi1/access": 12}
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 03:49:44 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)",
    ):
        (tmp_path / "driver" / "nvidia" / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
        assert host_cdi.driver_version(tmp_path) == "570.86.15"
    (tmp_path / "driver" / "nvidia" / "version").write_text("nothing\n")
    assert host_cdi.driver_version(tmp_path) == ""
