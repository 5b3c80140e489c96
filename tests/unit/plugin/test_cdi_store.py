import json
import pathlib

import pytest

from device_plugin.delivery import cdi_store, edits
from gpu_sharing.core import identifiers

UID = identifiers.PodUid("11111111-2222")
WANTED = edits.Edits(
    {"B": "2", "A": "1"}, (edits.Mount("/h", "/c", read_only=False),), (edits.device_node("/dev/nvidia0"),)
)


def test_a_specification_is_written_once_and_said_to_be_new(tmp_path: pathlib.Path) -> None:
    store = cdi_store.CdiStore(tmp_path / "cdi")

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

    with pytest.raises(cdi_store.NotWritten, match="file"):
        cdi_store.CdiStore(tmp_path / "file").write("abc-1", UID, WANTED)
