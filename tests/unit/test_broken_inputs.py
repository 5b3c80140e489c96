"""Inputs that `make fuzz` found: each ended a process, or was printed to a user as a traceback."""

import contextlib
import http.server
import json
import pathlib
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from device_plugin import mps_daemon, settings
from device_plugin.allocation import cdi_applied
from device_plugin.kubelet import checkpoint
from device_plugin.node import inventory, node_file, startup
from fault_injector.backends import node_agent
from gpu_sharing.adapters import cluster_access, decoding, http_get, objects, prometheus
from gpu_sharing.core import errors
from hamictl import failures, fault_client, manifests, node_checks, reader, snapshot
from lab import traces
from webui import extender_poller, meters

DEEP = '{"a":' * 100_000
CONTEXT = {"name": "x", "context": {"cluster": "x", "user": "u", "namespace": "n"}}
USER = {"name": "u", "user": {"token": "t", "as": "me", "as-groups": 5, "as-user-extra": ["k"]}}
KUBECONFIG = {
    "current-context": "x",
    "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [USER],
    "contexts": [CONTEXT],
}


def written(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("body", [b"", b"{", b'{"metadata":', b'{"metadata":{"name":"\xff"}}', DEEP.encode(), b"[]"])
def test_what_is_wrong_with_an_answer_is_one_error(body: bytes) -> None:
    """Callers that expected no deep nesting, or no broken UTF-8, ended with a traceback."""
    with pytest.raises(msgspec.DecodeError):
        decoding.json_as(objects.Node, body)


@pytest.mark.parametrize(
    "text", ["[" * 1500, "!!int x", "!!float x:y", "!!timestamp x", "a: 2026-99-99", "a: b: c", "\0"]
)
def test_what_is_wrong_with_yaml_is_one_error(text: str) -> None:
    """The parser of YAML raises five kinds of errors, of which its documentation names one."""
    with pytest.raises(ValueError, match=r"."):
        decoding.yaml_documents(text)


@pytest.mark.parametrize("text", ["!!timestamp x", "a: 2026-99-99", "[" * 1500, b"\xff"])
def test_a_broken_kubeconfig_is_a_wrong_setting(tmp_path: pathlib.Path, text: str | bytes) -> None:
    """`hamictl` printed a traceback, and every service ended with one."""
    path = written(tmp_path / "kubeconfig", text)

    assert cluster_access.namespace([path], "") == ""
    with pytest.raises(errors.SettingsError, match="cannot be read"):
        cluster_access.by_kubeconfig([path], "")


@pytest.mark.parametrize("lists", [{"contexts": 5}, {"users": {"a": 1}}, {"contexts": [5]}])
def test_a_kubeconfig_without_lists_is_a_wrong_setting(tmp_path: pathlib.Path, lists: dict[str, object]) -> None:
    """It is JSON with another shape, as a template that was not filled makes it."""
    path = written(tmp_path / "kubeconfig", json.dumps({**KUBECONFIG, **lists}))

    cluster_access.namespace([path], "")
    with pytest.raises(errors.SettingsError):
        cluster_access.by_kubeconfig([path], "")


def test_a_user_whose_groups_are_no_list_acts_as_no_group(tmp_path: pathlib.Path) -> None:
    """What kubectl would refuse is not sent as something else."""
    access = cluster_access.by_kubeconfig([written(tmp_path / "kubeconfig", json.dumps(KUBECONFIG))], "")

    assert access.impersonation == (("Impersonate-User", "me"),)


def test_what_is_left_on_a_node_is_read_whatever_it_is(tmp_path: pathlib.Path) -> None:
    """A file that a full disk cut, or another program wrote, must not end the plugin at each start."""
    endless = written(tmp_path / "modes", '{"GPU-1": Infinity}')
    file = node_file.NodeFile(written(tmp_path / "node", b"\xff"), settings.Sharing(), "a", lambda sharing: None)

    assert mps_daemon._modes(endless) == mps_daemon._modes(written(tmp_path / "deep", DEEP)) == {}
    assert inventory.unhealthy_in_boot(DEEP, "b", 0.0) == {}
    assert startup.boot_id(written(tmp_path / "boot", b"\xff\n")) == "\ufffd"
    assert node_agent.result_of(node_agent.ConfigMap(data={"f1": DEEP}), "f1") is None
    assert not file.reload()
    with pytest.raises(errors.CorruptRecord):
        checkpoint.read(DEEP.encode(), "nvidia.com/gpu")


@pytest.mark.parametrize("text", [DEEP, '{"nodeconfig": [{"name": "a", "filterdevices": {"index": [1e999]}}]}'])
def test_a_broken_file_of_nodes_is_a_wrong_setting(text: str) -> None:
    """The plugin logs it with a code, and goes on with the sharing that it had."""
    with pytest.raises(errors.SettingsError):
        settings.for_node(settings.Sharing(), text, "a")


def test_a_cgroup_that_is_no_text_hides_no_other_process(tmp_path: pathlib.Path) -> None:
    """A container may name cgroups below its own by any bytes, and ended the check of all containers of its node."""
    for number, name in ((1, b"\xff"), (2, b"x")):
        process = tmp_path / str(number)
        process.mkdir()
        (process / "cgroup").write_bytes(b"0::/kubepods/pod1/" + b"a" * 64 + b"/" + name + b"\n")
        (process / "environ").write_bytes(b"A=b\0")

    assert cdi_applied.find_marks(tmp_path, {"a" * 64}) == {"a" * 64: False}


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "[" * 1500, '{"kind": "List", "items": 5}', "&a [*a]", '{"kind": "Pod"}']
)
def test_a_broken_manifest_is_named_in_the_message(text: str) -> None:
    """`hamictl simulate` printed a traceback instead of the file's name."""
    with pytest.raises(failures.CommandFailed, match=r"x\.yaml"):
        manifests.read(pathlib.Path("x.yaml"), text, None, [])


def test_hamictl_reads_broken_files_without_a_traceback(tmp_path: pathlib.Path) -> None:
    """Of a snapshot, a checkpoint and a configuration."""
    path = written(tmp_path / node_checks._CHECKPOINT, DEEP)

    with pytest.raises(failures.CommandFailed, match="not a snapshot"):
        snapshot.load(path)
    assert list(node_checks._other_plugins(tmp_path)) == []
    assert node_checks._toml(written(tmp_path / "config.toml", "a = " + "[" * 1500)) == {}


@pytest.mark.parametrize("rows", ["n1,64000", "n1,64000,1,1000000000,T4", "n1,64000,1,-1,T4"])
def test_a_node_list_with_a_bad_row_is_refused(tmp_path: pathlib.Path, rows: str) -> None:
    """A row that was cut ended in a traceback, and one with a billion GPUs in a full memory."""
    written(tmp_path / "openb_node_list_gpu_node.csv", f"sn,cpu_milli,memory_mib,gpu,model\n{rows}\n")
    written(tmp_path / "openb_pod_list_default.csv", "name,cpu_milli,num_gpu,gpu_milli\np,1\n")

    with pytest.raises(traces.BadTrace):
        traces.read(tmp_path)


def test_a_pod_list_with_a_row_that_was_cut_is_refused(tmp_path: pathlib.Path) -> None:
    """As a download that ended early leaves it."""
    written(tmp_path / "openb_node_list_gpu_node.csv", "sn,cpu_milli,memory_mib,gpu,model\nn1,64000,1,1,T4\n")
    written(tmp_path / "openb_pod_list_default.csv", "name,cpu_milli,num_gpu,gpu_milli\np,1\n")

    with pytest.raises(traces.BadTrace):
        traces.read(tmp_path)


@contextlib.contextmanager
def answering(content: bytes) -> Iterator[str]:
    """The URL of a server that sends these bytes to each caller."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


def by_http_get(url: str) -> object:
    return http_get.read(url, 60.0)


def by_prometheus(url: str) -> object:
    return prometheus.ask(url, "up", 60.0)


def by_webui(url: str) -> object:
    return extender_poller.Extender(url, None, None).nodes()


def by_hamictl(url: str) -> object:
    return reader.Reader(url).nodes()


NO_HTTP = (
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000,
)

NESTED = b"HTTP/1.1 200 OK\r\n\r\n" + DEEP.encode()


@pytest.mark.parametrize("content", [*NO_HTTP, NESTED], ids=["ssh", "cut", "long", "deep"])
@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (by_prometheus, prometheus.NoAnswer), (by_webui, extender_poller.NoAnswer),
        (by_hamictl, failures.CommandFailed),
    ],
)  # fmt: skip
def test_a_server_that_does_not_speak_http_is_no_answer(
    call: Callable[[str], object], refusal: type[Exception], content: bytes
) -> None:
    """Another program at that port ended the thread that reads for all pages, which showed old data from then on."""
    with answering(content) as url, pytest.raises(refusal):
        call(url)


def by_faults(url: str) -> object:
    return fault_client.FaultClient(url).faults()


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (by_webui, extender_poller.NoAnswer), (by_hamictl, failures.CommandFailed),
        (by_faults, failures.CommandFailed),
    ],
)  # fmt: skip
def test_a_refusal_whose_text_was_cut_is_still_a_refusal(
    call: Callable[[str], object], refusal: type[Exception]
) -> None:
    """The status alone says enough."""
    with (
        answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 90\r\n\r\n{") as url,
        pytest.raises(refusal, match="403"),
    ):
        call(url)


@pytest.mark.parametrize("content", NO_HTTP, ids=["ssh", "cut", "long"])
def test_an_answer_that_is_not_http_is_an_error_of_the_network(content: bytes) -> None:
    """Every caller expects those."""
    with answering(content) as url, pytest.raises(OSError, match="not HTTP"):
        by_http_get(url)


@pytest.mark.parametrize("content", NO_HTTP, ids=["ssh", "cut", "long"])
def test_a_monitor_that_does_not_speak_http_is_reported(content: bytes) -> None:
    """It ended the thread that reads all monitors, and with an answer that was cut GPUs seemed to be unused."""
    with answering(content) as url:
        monitors = meters.Monitors(lambda: {"a": url})
        monitors._urls = {"a": url}

        with pytest.raises(meters.NoAnswer, match="a does not answer"):
            monitors.measure("a")
