"""A kubeconfig means to us what it means to kubectl."""

import asyncio
import json
import os
import pathlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gpu_sharing.adapters import cluster_access, kubernetes
from gpu_sharing.core import errors
from lab import certificates

Story = Callable[[str], Awaitable[None]]


def write(
    path: pathlib.Path,
    *,
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    current: str = "",
    name: str = "x",
) -> pathlib.Path:
    """A kubeconfig with the entries that are given, each with the same name."""
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Config"}
    if cluster is not None:
        body["clusters"] = [{"name": name, "cluster": cluster}]
    if user is not None:
        body["users"] = [{"name": name, "user": user}]
    if context is not None:
        body["contexts"] = [{"name": name, "context": context}]
    if current:
        body["current-context"] = current
    path.write_text(json.dumps(body))
    return path


def whole(path: pathlib.Path, cluster: dict[str, Any], user: dict[str, Any] | None = None) -> pathlib.Path:
    return write(path, cluster=cluster, user=user or {}, context={"cluster": "x", "user": "x"}, current="x")


def heads_at_a_server(story: Story, tls: ssl.SSLContext | None = None) -> list[list[str]]:
    """The lines of each request's head that a server received while a story ran with its address."""
    heads: list[list[str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            heads.append(head.decode().split("\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            await writer.drain()
            writer.close()
            return

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.2", 0, ssl=tls)
        host, port = server.sockets[0].getsockname()[:2]
        async with server, asyncio.timeout(60):
            await story(f"{host}:{port}")

    asyncio.run(run())
    return heads


async def call(*kubeconfigs: pathlib.Path, context: str = "") -> None:
    async with kubernetes.Client(kubeconfigs, "test", context) as client:
        await client.get("/api/v1/nodes/a", dict)


def test_the_first_file_of_a_list_decides_and_the_others_add(tmp_path: pathlib.Path) -> None:
    """`KUBECONFIG=work:home` reached the cluster at home, and kubectl the one at work."""

    async def story(address: str) -> None:
        work = write(tmp_path / "work", context={"cluster": "x", "user": "x", "namespace": "ai"}, current="x")
        home = write(
            tmp_path / "home", cluster={"server": "http://127.0.0.1:1"}, user={}, context={"cluster": "y", "user": "y"},
            current="y", name="y",
        )  # fmt: skip
        more = write(tmp_path / "more", cluster={"server": f"http://{address}"}, user={"token": "secret"})
        listed = {"KUBECONFIG": os.pathsep.join(map(str, (work, tmp_path / "absent", home, more)))}
        paths = cluster_access.files("", listed)
        assert paths == (work, home, more)
        assert cluster_access.namespace(paths, "") == "ai"
        assert cluster_access.namespace(paths, "y") == ""
        await call(*paths)

    (head,) = heads_at_a_server(story)
    assert head[0] == "GET /api/v1/nodes/a HTTP/1.1"
    assert "Authorization: Bearer secret" in head


def test_a_kubeconfig_that_is_named_and_absent_hides_the_one_at_home(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped KUBECONFIG sent `hamictl` to another cluster than kubectl."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    home = write(tmp_path / ".kube/config")

    assert cluster_access.files("", {}) == (home,)
    assert cluster_access.files("", {"KUBECONFIG": "/nowhere"}) == ()
    assert cluster_access.files("/nowhere", {}) == (pathlib.Path("/nowhere"),)


def test_the_name_in_the_certificate_may_differ_from_the_address(tmp_path: pathlib.Path) -> None:
    """`tls-server-name`: behind a tunnel every call failed for the host name."""
    certificates.write(tmp_path / "crt", tmp_path / "key")  # For localhost and 127.0.0.1; the server is at 127.0.0.2.
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "crt", tmp_path / "key")

    async def story(address: str) -> None:
        cluster = {"server": f"https://{address}", "certificate-authority": str(tmp_path / "crt")}
        with pytest.raises(errors.Unavailable, match="IP address mismatch"):
            await call(whole(tmp_path / "plain", cluster))
        await call(whole(tmp_path / "named", {**cluster, "tls-server-name": "localhost"}))

    assert [head[0] for head in heads_at_a_server(story, tls)] == ["GET /api/v1/nodes/a HTTP/1.1"]


def test_calls_go_through_the_proxy_that_the_kubeconfig_names(tmp_path: pathlib.Path) -> None:
    """`proxy-url`: without it a private cluster was not reached at all."""

    async def story(address: str) -> None:
        cluster = {"server": "http://private.example", "proxy-url": f"http://{address}"}
        await call(whole(tmp_path / "config", cluster))

    assert heads_at_a_server(story)[0][0] == "GET http://private.example/api/v1/nodes/a HTTP/1.1"
    socks = whole(tmp_path / "socks", {"server": "http://private.example", "proxy-url": "socks5://127.0.0.1:1"})
    with pytest.raises(errors.SettingsError, match=r"socks5://127\.0\.0\.1:1 is not supported"):
        cluster_access.by_kubeconfig([socks], "")


def test_the_proxy_of_the_environment_is_used_but_for_the_hosts_that_it_leaves_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kubectl does."""
    path = whole(tmp_path / "config", {"server": "https://private.example"})
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert cluster_access.by_kubeconfig([path], "").proxy == "http://proxy.example:3128"
    monkeypatch.setenv("no_proxy", ".example")
    assert cluster_access.by_kubeconfig([path], "").proxy is None


def test_an_administrator_may_act_as_another_user(tmp_path: pathlib.Path) -> None:
    """`as` was ignored: `hamictl doctor` said what the administrator may, and not what the user may."""
    user = {
        "token": "secret", "as": "ada", "as-groups": ["ai", "dev"], "as-user-extra": {"reason/x": ["test"]},
    }  # fmt: skip

    async def story(address: str) -> None:
        await call(whole(tmp_path / "config", {"server": f"http://{address}"}, user))

    (head,) = heads_at_a_server(story)
    assert sorted(line for line in head if line.startswith("Impersonate-")) == [
        "Impersonate-Extra-reason%2Fx: test",
        "Impersonate-Group: ai",
        "Impersonate-Group: dev",
        "Impersonate-User: ada",
    ]


def plugin(path: pathlib.Path, script: str) -> dict[str, Any]:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(path), "interactiveMode": "Never"}}


def test_an_exec_plugin_gives_the_token_and_its_failure_is_the_answer(tmp_path: pathlib.Path) -> None:
    """A plugin that failed ended in "401 Unauthorized", and its own sentence was lost."""
    status = {
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "short-lived"},
    }  # fmt: skip

    async def story(address: str) -> None:
        cluster = {"server": f"http://{address}"}
        await call(whole(tmp_path / "good", cluster, plugin(tmp_path / "login", f"echo '{json.dumps(status)}'")))
        bad = whole(tmp_path / "bad", cluster, plugin(tmp_path / "logout", "echo 'please log in again' >&2; exit 3"))
        with pytest.raises(errors.SettingsError, match=r"no credentials by .*returned 3\. please log in again"):
            await call(bad)

    (head,) = heads_at_a_server(story)
    assert "Authorization: Bearer short-lived" in head


@pytest.mark.parametrize("text", ["{", "", "- 1", "\x00", "current-context: x"])
def test_a_file_that_is_no_kubeconfig_is_named_in_one_sentence(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "config").write_text(text)

    with pytest.raises(errors.SettingsError, match=str(tmp_path / "config")) as failed:
        cluster_access.by_kubeconfig([tmp_path / "config"], "")
    assert "\n" not in str(failed.value)
    assert cluster_access.namespace([tmp_path / "config"], "") == ""
