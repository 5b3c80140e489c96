"""The kubelet's device checkpoint: which container of which pod holds which ids, and what Allocate answered.

An internal format of the kubelet, written before PreStartContainer is called. It is read as a second source beside
podresources, because it alone has the pod's UID, init containers, and the answer with our CDI name in it. Pure.

Source: k8s.io/kubernetes pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go, 1.20 to 1.36 (`DeviceIDs` by NUMA
node; a plain list before).
"""

import base64
import binascii
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf import message

from gpu_sharing.core import errors, identifiers
from protos.deviceplugin.v1beta1 import api_pb2

FILE = "device-plugins/kubelet_internal_checkpoint"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one container was given."""

    pod_uid: identifiers.PodUid
    container: str
    device_ids: frozenset[str]
    answer: bytes
    """What Allocate answered, as it was on the wire."""

    @property
    def cdi_names(self) -> tuple[str, ...]:
        """The CDI devices that Allocate answered, in their fully qualified form."""
        return tuple(device.name for device in self._decoded().cdi_devices)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that Allocate answered."""
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
    """The containers that hold ids of a resource.

    Raises:
        CorruptRecord: It is not a checkpoint as we know it. Nothing is ever taken for "nobody".
    """
    try:
        found = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise errors.CorruptRecord(f"the kubelet's device checkpoint cannot be read: {cause}") from cause
    return tuple(_entry(one) for one in found.data.entries or () if one.resource_name == resource)


def _entry(one: _PodDevices) -> Entry:
    try:
        answer = base64.b64decode(one.answer or "", validate=True)
        _decoded(answer)
    except (binascii.Error, ValueError, message.DecodeError) as cause:
        raise errors.CorruptRecord(
            f"the kubelet's device checkpoint has an answer that cannot be read: {cause}"
        ) from cause
    return Entry(identifiers.PodUid(one.pod_uid), one.container_name, frozenset(_ids(one.device_ids)), answer)


def _ids(found: Any) -> Iterator[str]:
    lists = found.values() if isinstance(found, dict) else [found or []]
    for ids in lists:
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise errors.CorruptRecord("the kubelet's device checkpoint has device ids that are no list of names")
        yield from ids
