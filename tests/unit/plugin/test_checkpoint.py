import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.kubelet import checkpoint
from gpu_sharing.core import errors
from protos.deviceplugin.v1beta1 import api_pb2

GPU = "nvidia.com/gpu"


def entry(**changes: Any) -> dict[str, Any]:
    answer = api_pb2.ContainerAllocateResponse(
        envs={"A": "b"}, cdi_devices=[api_pb2.CDIDevice(name="hami.io/vgpu=x-1")]
    )
    ids = {"-1": ["slot-0001"], "0": ["slot-0002"]}
    return {
        "PodUID": "u1", "ContainerName": "c", "ResourceName": GPU, "DeviceIDs": ids,
        "AllocResp": base64.b64encode(answer.SerializeToString()).decode(), **changes,
    }  # fmt: skip


def written(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"Data": {"PodDeviceEntries": list(entries), "RegisteredDevices": {}}, "Checksum": 1}).encode()


@pytest.mark.parametrize(
    "ids", [{"-1": ["slot-0001"], "0": ["slot-0002"]}, ["slot-0001", "slot-0002"]], ids=["1.20-1.36", "before 1.20"]
)
def test_reads_what_each_container_was_given(ids: Any) -> None:
    """In the formats of the kubelet's versions; other resources are left out."""
    found = checkpoint.read(written(entry(DeviceIDs=ids), entry(ResourceName="x.io/y")), GPU)

    assert len(found) == 1
    assert (found[0].pod_uid, found[0].container) == ("u1", "c")
    assert found[0].device_ids == {"slot-0001", "slot-0002"}
    assert found[0].cdi_names == ("hami.io/vgpu=x-1",)
    assert found[0].environment == {"A": "b"}


def test_a_fresh_checkpoint_is_empty() -> None:
    assert checkpoint.read(b'{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null},"Checksum":0}', GPU) == ()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"Data":7}',
        written(entry(DeviceIDs={"-1": [7]})),
        written(entry(DeviceIDs="x")),
        written(entry(AllocResp="%%%")),
        written(entry(AllocResp=base64.b64encode(b"\xff\xff").decode())),
        b"\xff",
    ],
)
def test_what_cannot_be_read_is_never_taken_for_nobody(text: bytes) -> None:
    with pytest.raises(errors.CorruptRecord):
        checkpoint.read(text, GPU)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_checkpoint_or_an_error(text: bytes) -> None:
    try:
        checkpoint.read(text, GPU)
    except errors.CorruptRecord:
        return
