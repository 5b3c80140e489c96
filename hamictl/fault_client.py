"""The client of the fault injection API, by its URL or by kubectl's port-forward into its pod."""

import contextlib
import json
import os
import pathlib
import urllib.error
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from fault_injector import api_types
from gpu_sharing.adapters import decoding, http_get
from gpu_sharing.core import json_text
from hamictl import failures, reader

URL_VARIABLE = "HAMI_FAULTS"
_DEPLOYMENT, _PORT = "hami-fault-injector", 9447
_TIMEOUT_SECONDS = 150.0
"""A backend may take a minute to inject, and another one to undo what failed."""
_Answer = TypeVar("_Answer")


class FaultClient:
    """Calls one fault injection service."""

    def __init__(self, url: str, token: str = "", ca_file: pathlib.Path | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._tls = reader.tls(ca_file) if ca_file else None

    def faults(self) -> list[api_types.Fault]:
        """Return every recorded fault. Errors as `_call`."""
        return self._call(api_types.Faults, "faults").faults

    def fault(self, fault_id: str) -> api_types.Fault:
        """Return one fault. Errors as `_call`."""
        return self._call(api_types.Fault, "faults", fault_id)

    def inject(self, group: str, request: Mapping[str, Any]) -> api_types.Fault:
        """Inject a fault of a group. Errors as `_call`."""
        return self._call(api_types.Fault, "faults", group, "inject", body=request)

    def recover(self, fault_id: str) -> api_types.Fault:
        """Recover a fault. Errors as `_call`."""
        return self._call(api_types.Fault, "faults", fault_id, "recover", body={})

    def cleanup(self) -> list[api_types.Fault]:
        """Recover every fault in effect. Errors as `_call`."""
        return self._call(api_types.Faults, "faults", "cleanup", body={}).faults

    def _call(self, kind: type[_Answer], *parts: str, body: Mapping[str, Any] | None = None) -> _Answer:
        """Return the answer at `/api/v1/<parts>`.

        Raises:
            CommandFailed: The call was refused, or there is no answer.
        """
        path = "/".join(urllib.parse.quote(part, safe="") for part in parts)
        data = None if body is None else json.dumps(body).encode()
        try:
            url = f"{self._url}/api/v1/{path}"
            answer = http_get.read(url, _TIMEOUT_SECONDS, self._headers, self._tls, body=data)
            return decoding.json_as(kind, answer)
        except urllib.error.HTTPError as refused:
            raise _refused(refused.code, http_get.body_of(refused)) from refused
        except (OSError, ValueError) as broken:  # msgspec's errors are ValueErrors.
            cause = broken.reason if isinstance(broken, urllib.error.URLError) else broken
            hint = "is --faults the fault injection service, and does it run? hamictl demo runs one"
            raise failures.CommandFailed(f"no answer from {self._url}: {cause}", hint) from broken


def _refused(status: int, body: bytes) -> failures.CommandFailed:
    try:
        fields = json_text.value(body)
        code, message = str(fields["error_code"]), str(fields["message"])
    except (ValueError, KeyError, TypeError):
        return failures.CommandFailed(f"status {status}: {body[:200].decode(errors='replace')}")
    negative = failures.NEGATIVE if 400 <= status < 500 and status not in (401, 429) else failures.FAILED
    return failures.CommandFailed(f"{code}: {message}", f"hamictl explain-code {code} says what to do", negative)


@contextlib.contextmanager
def reaching(where: reader.Address, url: str) -> Iterator[FaultClient]:
    """Yield a client; the connection ends with the context.

    Args:
        where: The cluster, for the port-forward.
        url: Of the service; empty for the variable, and without that for the port-forward.

    Raises:
        CommandFailed: The service cannot be reached.
    """
    url = url or os.environ.get(URL_VARIABLE, "")
    if url:
        yield FaultClient(url, reader.token_of(where), where.ca_file)
        return
    with reader.forwarded(where, _PORT, _DEPLOYMENT, "faults") as forwarded_url:
        yield FaultClient(forwarded_url)
