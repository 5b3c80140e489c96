"""The admission webhook as the API server calls it: over TLS, with a certificate that is renewed."""

import base64
import http.client
import json
import pathlib
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from lab import api_server, certificates, extender_process
from tests.component import calls

pytestmark = pytest.mark.slow

CONTAINER = {"name": "c", "resources": {"limits": {"nvidia.com/gpumem": "4k"}}}
POD = {"metadata": {"name": "p"}, "spec": {"containers": [CONTAINER]}}


@pytest.fixture
def extender(server: api_server.Running, tmp_path: pathlib.Path) -> Iterator[extender_process.ExtenderProcess]:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificates.write(certificate, key)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--secure-api-bind", "127.0.0.1:0")
    with extender_process.running(server.write_kubeconfig(tmp_path / "k"), tmp_path / "log", *flags) as running:
        yield running


def post(
    extender: extender_process.ExtenderProcess, body: bytes, path: str = "/webhook", method: str = "POST"
) -> tuple[int, Any]:
    connection = http.client.HTTPSConnection(extender.webhook, context=ssl._create_unverified_context(), timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def asked(pod: Any, **request: Any) -> bytes:
    return json.dumps({"request": {"uid": "u-1", "operation": "CREATE", "object": pod, **request}}).encode()


def test_a_pod_with_too_many_containers_is_not_copied(extender: extender_process.ExtenderProcess) -> None:
    """90,000 of them took 5 s of the loop on which kube-scheduler waits; pods without GPUs are let through."""
    plain = {"spec": {"containers": [{"name": "c"}] * 10_000}}
    asking = {"spec": {"containers": [CONTAINER, *plain["spec"]["containers"]]}}
    few = {"spec": {"containers": [CONTAINER, *[{"name": "c"}] * 255]}}

    assert post(extender, asked(plain))[1]["response"] == {"uid": "u-1", "allowed": True}
    assert post(extender, asked(asking))[1]["response"]["status"]["message"].startswith("SCHED_TOO_MANY_CONTAINERS: ")
    assert "patch" in post(extender, asked(few))[1]["response"]
    fields = {"metadata": {"annotations": {f"a{n}": "" for n in range(60_000)}}, "spec": {"containers": [CONTAINER]}}
    assert "over 50000 fields" in post(extender, asked(fields))[1]["response"]["status"]["message"]
    assert post(extender, b" " * (4 * 1024 * 1024 + 1))[0] == 413
    assert post(extender, b'{"request":{"uid":"u","object":' + b'{"a":' * 100_000)[0] == 400


def test_a_pod_is_mended_or_refused_or_let_through(extender: extender_process.ExtenderProcess) -> None:
    """In the words of admission/v1."""
    status, good = post(extender, asked(POD))
    bad = post(extender, asked({**POD, "metadata": {"annotations": {"nvidia.com/numa-bind": "perhaps"}}}))[1]
    large = {"spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpumem": "99000"}}}]}}
    warned = post(extender, asked(large))[1]

    assert (status, good["kind"], good["response"]["uid"], good["response"]["allowed"]) == (
        200, "AdmissionReview", "u-1", True,
    )  # fmt: skip
    operations = json.loads(base64.b64decode(good["response"]["patch"]))
    assert {"op": "add", "path": "/spec/schedulerName", "value": "hami-scheduler"} in operations
    assert bad["response"]["allowed"] is False
    assert bad["response"]["status"]["message"].startswith("SCHED_UNKNOWN_POLICY: nvidia.com/numa-bind")
    assert "the largest has 16,000 MiB" in warned["response"]["warnings"][0]
    assert post(extender, asked(POD, operation="UPDATE"))[1]["response"] == {"uid": "u-1", "allowed": True}


def test_a_gang_without_a_size_is_let_through_with_the_word_what_it_waits_for(
    extender: extender_process.ExtenderProcess,
) -> None:
    """The label of coscheduling says no size; its PodGroup may still come."""
    labelled = {**POD, "metadata": {"labels": {"scheduling.x-k8s.io/pod-group": "train"}}}
    sized = {**POD, "metadata": {"annotations": {"hami.io/gang": "train", "hami.io/gang-size": "2"}}}

    waits = post(extender, asked(labelled))[1]["response"]

    assert waits["allowed"] is True
    assert waits["warnings"] == [
        "the pod waits until there is a PodGroup train, or write the annotation hami.io/gang-size"
    ]
    assert "warnings" not in post(extender, asked(sized))[1]["response"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "SCHED_BAD_REQUEST"), (b"[]", 400, "SCHED_BAD_REQUEST"),
        (b'{"request":{}}', 400, "SCHED_BAD_REQUEST"),
        (b"\xff", 400, "SCHED_BAD_REQUEST"), (asked({"spec": 1}), 400, "SCHED_BAD_REQUEST"),
        (asked({"spec": {"containers": [{"name": "c", "resources": []}]}}), 400, "SCHED_BAD_REQUEST"),
        (b" " * (8 * 1024 * 1024 + 1), 413, "SCHED_BODY_TOO_LARGE"),
    ],
)  # fmt: skip
def test_what_is_no_review_of_a_pod_is_refused_with_a_code(
    extender: extender_process.ExtenderProcess, body: bytes, status: int, code: str
) -> None:
    found = post(extender, body)

    assert (found[0], found[1]["error_code"]) == (status, code)


def test_other_paths_and_methods_are_none(extender: extender_process.ExtenderProcess) -> None:
    assert post(extender, b"{}", path="/filter")[0] == 404
    assert post(extender, b"", method="GET")[0] == 404


def test_a_renewed_certificate_is_used_without_a_restart(
    extender: extender_process.ExtenderProcess, tmp_path: pathlib.Path
) -> None:
    """And half a renewal, a key that is another's, leaves the old one in use until the rest is there."""

    def shown() -> set[str]:
        """By the webhook and the read API."""
        secured = (extender.logged("listening") or {})["secure-api"]
        addresses = (address.partition(":") for address in (extender.webhook, secured))
        return {ssl.get_server_certificate((host, int(port))).strip() for host, _, port in addresses}

    before = shown()
    certificates.write(tmp_path / "new.crt", tmp_path / "new.key", "renewed")
    (tmp_path / "new.crt").replace(tmp_path / "tls.crt")
    calls.eventually(lambda: "SCHED_CERTIFICATE" in (tmp_path / "log").read_text())
    assert shown() == before

    (tmp_path / "new.key").replace(tmp_path / "tls.key")

    calls.eventually(lambda: shown() == {(tmp_path / "tls.crt").read_text().strip()})
    assert post(extender, asked(POD))[1]["response"]["allowed"]
