"""The record of all faults, which survives the process: in a file, or in a ConfigMap."""

import asyncio
import os
import pathlib
from typing import Protocol

import msgspec
import orjson

from gpu_sharing.adapters import decoding, kubernetes
from gpu_sharing.core import errors

_KEY = "faults"
_MOST_BYTES = 1024 * 1024
"""The API server's limit for a ConfigMap."""


class Keep(Protocol):
    """A place for one text."""

    async def load(self) -> str | None:
        """Return the text; None where none was saved.

        Raises:
            OSError: It cannot be read.
            KubernetesError: The API server did not answer.
        """

    async def save(self, text: str) -> None:
        """Replace the text, whole or not at all. Errors as `load`, and `Conflict` after a write of another process."""


class FileKeep:
    """A file that is replaced by renaming another one over it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    async def load(self) -> str | None:
        """See `Keep`."""
        return await asyncio.to_thread(self._load)

    def _load(self) -> str | None:
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                raise OSError(f"{self._path} is larger than {_MOST_BYTES} bytes")
            return self._path.read_text(errors="replace")
        except FileNotFoundError:
            return None

    async def save(self, text: str) -> None:
        """See `Keep`."""
        await asyncio.to_thread(self._save, text)

    def _save(self, text: str) -> None:
        beside = self._path.with_name(f"{self._path.name}.part")
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _ConfigMap(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    data: dict[str, str] | None = None


class ConfigMapKeep:
    """A ConfigMap. A write on top of another process's write is refused, so that no record is lost."""

    def __init__(self, client: kubernetes.Client, namespace: str, name: str) -> None:
        self._client = client
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._name = name
        self._version = ""

    async def load(self) -> str | None:
        """See `Keep`."""
        try:
            read = await self._client.get(f"{self._collection}/{self._name}", _ConfigMap)
        except errors.NotFound:
            self._version = ""
            return None
        self._version = read.metadata.resource_version
        return (read.data or {}).get(_KEY)

    async def save(self, text: str) -> None:
        """See `Keep`."""
        if self._version:
            metadata = {"resourceVersion": self._version}
            body: dict[str, object] = {"metadata": metadata, "data": {_KEY: text}}
            answer = await self._client.patch(f"{self._collection}/{self._name}", orjson.dumps(body))
        else:
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self._name}, "data": {_KEY: text}}
            answer = await self._client.post(self._collection, orjson.dumps(body))
        self._version = decoding.json_as(_ConfigMap, answer).metadata.resource_version
