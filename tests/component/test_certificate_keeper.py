"""The kept certificate: made once, renewed in time without a moment in which nobody trusts it, whoever else writes."""

import asyncio
import base64
import contextlib
import datetime
import http.client
import pathlib
import ssl
import time
from typing import Any

import pytest

from gpu_sharing.adapters import certificates, kubernetes, self_signed
from gpu_sharing.core import errors
from lab import api_server, extender_process, faults
from scheduler_extender import settings
from scheduler_extender.act import certificate_keeper
from tests.component import calls

pytestmark = pytest.mark.slow

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC).timestamp()
DAY = 86_400.0
NAMES = ("hami-scheduler.hami-system.svc", "hami-scheduler.hami-system.svc.cluster.local")
SECRETS = "/api/v1/namespaces/default/secrets"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


def made(now: float = NOW) -> dict[str, str]:
    found = certificate_keeper.renewed({}, NAMES, now)
    assert found is not None
    return dict(found)


def authorities(data: Any) -> list[str]:
    return [part + "-----END CERTIFICATE-----\n" for part in data["ca.crt"].split("-----END CERTIFICATE-----\n")[:-1]]


def test_what_is_good_for_a_while_is_left_alone() -> None:
    """And what is made is for the names, for ninety days, by an authority of ten years."""
    first = made()
    assert certificate_keeper.renewed(first, NAMES, NOW + 59 * DAY) is None
    assert self_signed.names(first["tls.crt"]) == set(NAMES)
    ends = certificates.ends_at(first["tls.crt"])
    assert ends is not None
    assert round((ends - NOW) / DAY) == 90
    assert len(authorities(first)) == 1
    assert self_signed.signs(first["ca.crt"], first["tls.crt"])


def test_a_certificate_is_renewed_in_time_by_the_same_authority() -> None:
    """So that whoever trusts it goes on."""
    first = made()
    for now, names in ((NOW + 61 * DAY, NAMES), (NOW, ("other",))):
        second = certificate_keeper.renewed(first, names, now)
        assert second is not None
        assert (second["ca.crt"], second["ca.key"]) == (first["ca.crt"], first["ca.key"])
        assert self_signed.names(second["tls.crt"]) == set(names)
        assert self_signed.signs(first["ca.crt"], second["tls.crt"])


def test_before_an_authority_ends_a_new_one_is_trusted_beside_it() -> None:
    """The new one signs; the old one's certificates go on being trusted until it ends."""
    first = made()
    later = NOW + (3650 - 364) * DAY
    second = certificate_keeper.renewed(first, NAMES, later)
    assert second is not None
    newest, before = authorities(second)
    assert before == first["ca.crt"]
    assert self_signed.signs(newest, second["tls.crt"])
    assert certificate_keeper.renewed(second, NAMES, later + DAY) is None
    long_after = certificate_keeper.renewed(first, NAMES, NOW + 4000 * DAY)
    assert long_after is not None
    assert len(authorities(long_after)) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"ca.key": ""}, {"ca.crt": "rubbish"}, {"tls.crt": "rubbish"}, {"tls.key": ""},
        {"ca.crt": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
    ],
)  # fmt: skip
def test_a_secret_that_holds_rubbish_is_made_anew(broken: dict[str, str]) -> None:
    """By somebody's hand, or half restored."""
    found = certificate_keeper.renewed({**made(), **broken}, NAMES, NOW + DAY)
    assert found is not None
    assert self_signed.signs(authorities(found)[0], found["tls.crt"])
    assert certificate_keeper.renewed(found, NAMES, NOW + 2 * DAY) is None
    other = made()
    mixed = certificate_keeper.renewed({**made(), "tls.crt": other["tls.crt"]}, NAMES, NOW)
    assert mixed is not None


def test_an_authority_whose_key_is_lost_is_trusted_until_it_ends() -> None:
    """Nothing is needed of it before the next renewal."""
    broken = {**made(), "ca.key": "rubbish"}
    assert certificate_keeper.renewed(broken, NAMES, NOW + DAY) is None
    found = certificate_keeper.renewed(broken, NAMES, NOW + 61 * DAY)
    assert found is not None
    newest, before = authorities(found)
    assert before == broken["ca.crt"]
    assert self_signed.signs(newest, found["tls.crt"])


def test_openssl_accepts_what_is_made(tmp_path: pathlib.Path) -> None:
    """A client that trusts the authority reaches the server by its name, and by no other."""
    data = made(time.time())
    certificate, key = tmp_path / "crt", tmp_path / "key"
    certificate.write_text(data["tls.crt"])
    key.write_text(data["tls.key"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    for name, good in ((NAMES[0], True), ("elsewhere", False)):
        client = ssl.create_default_context(cadata=data["ca.crt"])
        ours, theirs = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
        asking = client.wrap_bio(theirs[0], ours[0], server_hostname=name)
        answering = server.wrap_bio(ours[0], theirs[0], server_side=True)
        with contextlib.nullcontext() if good else pytest.raises(ssl.SSLCertVerificationError):
            for _ in range(6):
                for side in (asking, answering):
                    with contextlib.suppress(ssl.SSLWantReadError):
                        side.do_handshake()


def keeper_of(client: kubernetes.Client, folder: pathlib.Path) -> certificate_keeper.CertificateKeeper:
    options = settings.parse(
        [
            "--tls-secret",
            "default/tls",
            "--tls-names",
            ",".join(NAMES),
            "--tls-cert",
            str(folder / "crt"),
            "--tls-key",
            str(folder / "key"),
            "--webhook-configuration",
            "hami",
        ],
        {},
    )
    return certificate_keeper.of(client, options)


def test_replicas_agree_on_one_certificate_and_tell_the_api_server_who_signed_it(tmp_path: pathlib.Path) -> None:
    """By the Secret's version: who is second reads what the first wrote. Somebody's wrong caBundle is mended."""
    folders = [tmp_path / "one", tmp_path / "two"]
    with api_server.running() as server:
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
        server.request("POST", SECRETS, {"metadata": {"name": "tls", "namespace": "default"}})
        hook = {"name": "vgpu.hami.io", "clientConfig": {"service": {"name": "s"}}, "timeoutSeconds": 5}
        server.request("POST", HOOKS, {"metadata": {"name": "hami"}, "webhooks": [hook, {**hook, "name": "b"}]})

        async def both() -> list[Any]:
            async with kubernetes.Client(kubeconfig, "test") as client:
                keepers = []
                for folder in folders:
                    folder.mkdir(exist_ok=True)
                    keepers.append(keeper_of(client, folder))
                return await asyncio.gather(*(keeper.look() for keeper in keepers), return_exceptions=True)

        def agree() -> None:
            for _ in range(3):  # Whoever was second looks again, as `run` does.
                found = asyncio.run(both())
                assert all(one is None or isinstance(one, errors.Conflict) for one in found), found
                assert None in found
            assert found == [None, None]

        agree()
        secret = server.request("GET", f"{SECRETS}/tls")["data"]
        for folder in folders:
            assert (folder / "crt").read_bytes() == base64.b64decode(secret["tls.crt"])
            assert (folder / "key").stat().st_mode & 0o077 == 0
        version = server.request("GET", f"{SECRETS}/tls")["metadata"]["resourceVersion"]
        hooks = server.request("GET", f"{HOOKS}/hami")
        assert [one["clientConfig"]["caBundle"] for one in hooks["webhooks"]] == [secret["ca.crt"]] * 2
        assert hooks["webhooks"][0]["timeoutSeconds"] == 5

        hooks["webhooks"][0]["clientConfig"]["caBundle"] = "AAAA"
        server.request("PUT", f"{HOOKS}/hami", hooks)
        agree()
        hooks = server.request("GET", f"{HOOKS}/hami")
        assert hooks["webhooks"][0]["clientConfig"]["caBundle"] == secret["ca.crt"]
        assert server.request("GET", f"{SECRETS}/tls")["metadata"]["resourceVersion"] == version

        server.request("DELETE", f"{SECRETS}/tls")
        assert all(isinstance(one, errors.NotFound) for one in asyncio.run(both()))


def test_an_extender_listens_before_its_secret_is_there_and_says_what_is_missing(tmp_path: pathlib.Path) -> None:
    """And has the kept certificate once it is."""
    with api_server.running() as server:
        server.app.faults.arm(faults.Fault("GET", "/secrets/tls", times=1, refuse_with=403))
        files = ("--tls-cert", str(tmp_path / "crt"), "--tls-key", str(tmp_path / "key"))
        flags = (*files, "--tls-secret", "default/tls", "--tls-names", "localhost")
        with extender_process.running(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", *flags) as extender:
            untrusted = (tmp_path / "crt").read_text()
            calls.eventually(lambda: "SCHED_CERTIFICATE_NOT_KEPT" in (tmp_path / "log").read_text())
            server.request("POST", SECRETS, {"metadata": {"name": "tls", "namespace": "default"}})
            calls.eventually(lambda: (tmp_path / "crt").read_text() != untrusted)
            secret = server.request("GET", f"{SECRETS}/tls")["data"]
            trust = ssl.create_default_context(cadata=base64.b64decode(secret["ca.crt"]).decode())

            def answers() -> bool:
                port = extender.webhook.rpartition(":")[2]
                connection = http.client.HTTPSConnection("localhost", int(port), context=trust, timeout=60)
                try:
                    connection.request("GET", "/webhook")
                    return connection.getresponse().status > 0
                except ssl.SSLError:
                    return False
                finally:
                    connection.close()

            calls.eventually(answers)


@pytest.mark.parametrize("arguments", [["--tls-secret", "a/b"], ["--tls-secret", "b"]])
def test_a_secret_without_files_or_names_is_refused(arguments: list[str]) -> None:
    """At start."""
    with pytest.raises(errors.SettingsError, match="--tls-secret"):
        settings.parse(arguments, {})
