"""The certificate of webhook and read API, for clusters without cert-manager: kept in a Secret, renewed, published.

Every replica runs this: the first one writes, the others read. The Secret holds an authority (`ca.crt`, `ca.key`) and
the certificate that it signed (`tls.crt`, `tls.key`). `ca.crt` may hold two authorities: before an old one expires, a
new one is trusted beside it, so that no call fails between the change of the Secret and its arrival everywhere.
"""

import asyncio
import base64
import datetime
import pathlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import structlog

from gpu_sharing.adapters import certificates, kubernetes, objects, self_signed
from gpu_sharing.core import error_codes, errors
from scheduler_extender.settings import Settings

AUTHORITY_DAYS, SERVER_DAYS = 3_650, 90
_RENEW_AUTHORITY_SECONDS = 365 * 86_400.0
_RENEW_SERVER_SECONDS = 30 * 86_400.0
_LOOK_SECONDS = 600.0
_RETRY_SECONDS = 5.0
_END = "-----END CERTIFICATE-----\n"
_HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"

Data = Mapping[str, str]
"""What the Secret holds, decoded."""
log = structlog.get_logger("certificate")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the certificate is kept and for what."""

    secret: str
    """The path of the Secret."""
    names: tuple[str, ...]
    """The DNS names of the certificate."""
    certificate: pathlib.Path
    key: pathlib.Path
    webhook_configuration: str = ""
    """The webhook configuration whose `caBundle` is kept up to date; empty for none."""


class _Secret(msgspec.Struct):
    metadata: objects.Metadata
    data: dict[str, str] | None = None


class _Configuration(msgspec.Struct):
    metadata: objects.Metadata
    webhooks: list[dict[str, Any]] | None = None


def renewed(data: Data, names: Sequence[str], now: float) -> Data | None:
    """Return what the Secret should hold instead, with new keys; None while its content is valid for long enough."""
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    bundle = data.get("ca.crt", "")
    # The newest comes first: it signs; the one after it is trusted until it ends.
    newest = bundle.partition(_END)[0] + _END if _END in bundle else ""
    authority = self_signed.Pair(newest, data.get("ca.key", ""))
    if _left_seconds(newest, now) < _RENEW_AUTHORITY_SECONDS or not authority.key:
        authority = self_signed.authority(moment, AUTHORITY_DAYS)
        bundle = authority.certificate + (newest if _left_seconds(newest, now) > 0 else "")
    elif (
        _left_seconds(data.get("tls.crt", ""), now) > _RENEW_SERVER_SECONDS
        and self_signed.names(data.get("tls.crt", "")) == set(names)
        and self_signed.signs(newest, data.get("tls.crt", ""))
        and data.get("tls.key")
    ):
        return None
    try:
        server = self_signed.server(authority, names, moment, SERVER_DAYS)
    except ValueError:  # The authority's key is none: begin anew, and let what it signed be trusted until it ends.
        authority = self_signed.authority(moment, AUTHORITY_DAYS)
        bundle = authority.certificate + newest
        server = self_signed.server(authority, names, moment, SERVER_DAYS)
    return {"ca.crt": bundle, "ca.key": authority.key, "tls.crt": server.certificate, "tls.key": server.key}


def _left_seconds(certificate: str, now: float) -> float:
    return (certificates.ends_at(certificate) or 0.0) - now


def of(client: kubernetes.Client, settings: Settings) -> "CertificateKeeper":
    """Return the keeper by the settings."""
    namespace, _, name = settings.tls_secret.partition("/")
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    place = Place(
        f"/api/v1/namespaces/{namespace}/secrets/{name}",
        settings.tls_names,
        settings.tls_cert,
        settings.tls_key,
        settings.webhook_configuration,
    )
    return CertificateKeeper(client, place)


class CertificateKeeper:
    """Keeps one certificate."""

    def __init__(self, client: kubernetes.Client, place: Place) -> None:
        self._client = client
        self._place = place

    def begin(self) -> None:
        """Write a self-signed certificate to listen with until the Secret was read; no caller trusts it."""
        if self._place.certificate.exists() and self._place.key.exists():
            return
        secret = renewed({}, self._place.names, time.time())
        assert secret is not None
        self._write(secret)

    async def run(self) -> None:
        """Check the Secret periodically; ends only by cancellation."""
        while True:
            try:
                await self.look()
                await asyncio.sleep(_LOOK_SECONDS)
            except errors.Conflict:
                continue  # Another replica was first: read what it wrote.
            except (errors.KubernetesError, msgspec.MsgspecError, ValueError) as cause:
                log.error("certificate not kept", error_code=error_codes.CERTIFICATE_NOT_KEPT, cause=str(cause))
                await asyncio.sleep(_RETRY_SECONDS)

    async def look(self) -> None:
        """Renew what expires soon, use it, and publish its authority.

        Raises:
            KubernetesError: The API server refuses; Conflict where another replica was first.
            MsgspecError, ValueError: What it holds cannot be read.
        """
        secret = await self._client.get(self._place.secret, _Secret)
        data = {name: base64.b64decode(value).decode() for name, value in (secret.data or {}).items()}
        fresh = renewed(data, self._place.names, time.time())
        if fresh is not None:
            encoded = {name: base64.b64encode(text.encode()).decode() for name, text in fresh.items()}
            body = {"metadata": {"resourceVersion": secret.metadata.resource_version}, "data": encoded}
            await self._client.patch(self._place.secret, orjson.dumps(body))
            log.info("certificate renewed", names=self._place.names)
        self._write(fresh or data)
        if self._place.webhook_configuration:
            await self._make_known((fresh or data)["ca.crt"])

    async def _make_known(self, bundle: str) -> None:
        path = f"{_HOOKS}/{self._place.webhook_configuration}"
        configuration = await self._client.get(path, _Configuration)
        wanted = base64.b64encode(bundle.encode()).decode()
        hooks = configuration.webhooks or []
        if all(hook.get("clientConfig", {}).get("caBundle") == wanted for hook in hooks):
            return
        after = [{**hook, "clientConfig": {**hook.get("clientConfig", {}), "caBundle": wanted}} for hook in hooks]
        body = {"metadata": {"resourceVersion": configuration.metadata.resource_version}, "webhooks": after}
        await self._client.patch(path, orjson.dumps(body))
        log.info("authority made known", configuration=self._place.webhook_configuration)

    def _write(self, data: Data) -> None:
        """Write the key first: a listener that reads both in between finds that they do not match, and reads again."""
        for path, text in ((self._place.key, data["tls.key"]), (self._place.certificate, data["tls.crt"])):
            if path.exists() and path.read_text() == text:
                continue
            fresh = path.with_name(f".{path.name}.new")
            fresh.touch(mode=0o600)
            fresh.write_text(text)
            fresh.replace(path)
