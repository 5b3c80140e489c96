"""The kubelet's device checkpoint: which container of which pod holds which device ids, and the answer of Allocate.

An internal format of the kubelet, written before PreStartContainer is called. It is read beside podresources, because
it alone has the pod's UID, init containers, and the answer with our CDI name in it.

Source: k8s.io/kubernetes pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go, 1.20 to 1.36 (`DeviceIDs` by NUMA
node; a plain list before).
"""

import base64
import binascii
import functools
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf import message

from gpu_sharing.adapters import decoding
from gpu_sharing.core import errors, identifiers
from protos.deviceplugin.v1beta1 import api_pb2

FILE = "device-plugins/kubelet_internal_checkpoint"


@dataclass(frozen=True, slots=True)
class Entry:
    """The device ids of one container, and the answer to its Allocate."""

    pod_uid: identifiers.PodUid
    container: str
    device_ids: frozenset[str]
    answer: bytes
    """Bytes of the answer to Allocate."""

    @property
    def cdi_names(self) -> tuple[str, ...]:
        """Fully qualified names of the CDI devices in the answer."""
        return tuple(device.name for device in self._decoded().cdi_devices)

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables in the answer."""
        return dict(self._decoded().envs)

    def _decoded(self) -> api_pb2.ContainerAllocateResponse:
        return _decoded(self.answer)


@functools.lru_cache(maxsize=512)
def _decoded(answer: bytes) -> api_pb2.ContainerAllocateResponse:
    return api_pb2.ContainerAllocateResponse.FromString(answer)


class _PodDevices(msgspec.Struct, rename={"pod_uid": "PodUID"}):
    pod_uid: str
    container_name: str = msgspec.field(name="ContainerName")
    resource_name: str = msgspec.field(name="ResourceName")
    device_ids: Any = msgspec.field(name="DeviceIDs", default=None)
    answer: str | None = msgspec.field(name="AllocResp", default=None)


class _Data(msgspec.Struct):
    entries: list[_PodDevices] | None = msgspec.field(name="PodDeviceEntries", default=None)


class _Checkpoint(msgspec.Struct):
    data: _Data = msgspec.field(name="Data")


_decoder = msgspec.json.Decoder(_Checkpoint)


def read(text: bytes, resource: str) -> tuple[Entry, ...]:
    """Return the containers that hold device ids of a resource.

    Raises:
        CorruptRecord: The text is no checkpoint of a known format, so that nothing follows from it.
    """
    try:
        checkpoint = decoding.json_by(_decoder, text)
    except msgspec.MsgspecError as cause:
        raise errors.CorruptRecord(f"the kubelet's device checkpoint cannot be read: {cause}") from cause
    return tuple(_entry(one) for one in checkpoint.data.entries or () if one.resource_name == resource)


def _entry(devices: _PodDevices) -> Entry:
    try:
        answer = base64.b64decode(devices.answer or "", validate=True)
        _decoded(answer)
    except (binascii.Error, ValueError, message.DecodeError) as cause:
        raise errors.CorruptRecord(
            f"the kubelet's device checkpoint has an answer that cannot be read: {cause}"
        ) from cause
    return Entry(
        identifiers.PodUid(devices.pod_uid), devices.container_name, frozenset(_ids(devices.device_ids)), answer
    )


def _ids(value: Any) -> Iterator[str]:
    lists = value.values() if isinstance(value, dict) else [value or []]
    for ids in lists:
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise errors.CorruptRecord("the kubelet's device checkpoint has device ids that are no list of names")
        yield from ids


class CheckpointFile:
    """The checkpoint on disk, decoded again only when the file changes.

    Args:
        kubelet_dir: The kubelet's directory.
        resource: The resource that counts GPUs.
    """

    def __init__(self, kubelet_dir: pathlib.Path, resource: str) -> None:
        self._path = kubelet_dir / FILE
        self._resource = resource
        self._read: tuple[tuple[int, int, int], tuple[Entry, ...]] | None = None

    @property
    def exists(self) -> bool:
        """Whether the kubelet has written a checkpoint that is visible here."""
        return self._path.exists()

    def modified_at(self) -> int:
        """Return when the file was last written, in nanoseconds since the epoch; 0 where it cannot be read."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0

    def entries(self) -> tuple[Entry, ...]:
        """Return the containers that hold device ids; none where there is no file.

        Raises:
            OSError: The file cannot be read.
            CorruptRecord: See `read`.
        """
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read is None or self._read[0] != version:
                # Read after the look at its version: if it is replaced in between, the next look finds another version.
                self._read = version, read(self._path.read_bytes(), self._resource)
        except FileNotFoundError:
            return ()
        return self._read[1]
