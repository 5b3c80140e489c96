"""`hamictl` as a person types it, against a real extender on the lab's API server."""

import contextlib
import datetime
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest
import yaml

from gpu_sharing.core import version
from hamictl import __main__ as command
from hamictl import explain_code
from lab import api_server, certificates, extender_process, gpus, traces
from tests.component import calls, liar

pytestmark = pytest.mark.slow

Extender = extender_process.ExtenderProcess
TRACE = traces.SMALL.parent
PODS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: train, namespace: ai}
spec:
  replicas: 3
  template:
    spec:
      containers:
        - name: main
          resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: 9000}}
"""


def hamictl(
    *arguments: str, given: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hamictl", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        input=given,
        env={**os.environ, "KUBECONFIG": "/nowhere", **(environment or {})},
    )


def said(*arguments: str, **more: Any) -> str:
    done = hamictl(*arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_a_terminal(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What a person sees of it."""
    ours, theirs = pty.openpty()
    known = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    done = subprocess.run(
        [sys.executable, "-m", "hamictl", *arguments],
        stdout=theirs,
        stderr=theirs,
        timeout=60,
        env={**known, "KUBECONFIG": "/nowhere", "TERM": "xterm", **(environment or {})},
    )
    shown = os.read(ours, 100_000).decode()
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0
    return shown


@pytest.fixture
def api(extender: Extender, server: api_server.Running) -> tuple[str, ...]:
    """Flags that reach an extender with one pod that holds and one that waits."""
    assert calls.bind(extender, calls.create(server, "holds", {**calls.LIMITS, "nvidia.com/gpumem": "4000"}), "a") == ""
    calls.create(server, "waits", {**calls.LIMITS, "nvidia.com/gpumem": "99000"})
    calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 2)
    return ("--extender", f"http://{extender.api}")


@pytest.mark.parametrize(
    ("arguments", "missing"), [(("demo", "--once"), "rich"), (("simulate", "--drain", "a"), "numpy")]
)
def test_without_its_extra_it_says_what_to_install(arguments: tuple[str, ...], missing: str) -> None:
    """The package alone is what the services need."""
    program = f"import sys; sys.modules[{missing!r}] = None; from hamictl import start; sys.exit(start.main())"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert done.stderr == f"hamictl: {missing} is not installed\nhint: pip install 'hami-py[cli]'\n"


HEAVY = ("aiohttp", "asyncio", "flask", "kubernetes", "numpy", "rich", "scheduler_extender", "structlog", "yaml")


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("--help",), ("explain-code", "SCHED_NOT_READY"), ("nodes", "--extender", "http://127.0.0.1:1")],
)
def test_a_small_command_imports_nothing_that_it_does_not_need(arguments: tuple[str, ...]) -> None:
    """Each command took three quarters of a second before it did anything, because all of them were imported."""
    program = (
        "import atexit, sys\nfrom hamictl import __main__\n"
        f"atexit.register(lambda: print('heavy', *({{*{HEAVY!r}}} & {{*sys.modules}}), file=sys.stderr))\n"
        "sys.exit(__main__.main())"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)

    assert done.stderr.splitlines()[-1] == "heavy", done.stderr


def test_nodes_in_every_format(api: tuple[str, ...]) -> None:
    """As kubectl would print them."""
    assert said("nodes", *api).splitlines() == [
        "NODE   GPUS   MODEL         ALLOCATED   OF           SHARE   CONTAINERS   ISOLATION   STATE",
        "a      2      NVIDIA A100   4,000 MiB   32,000 MiB   12%     1            hami-core   ok",
        "b      2      NVIDIA A100   0 MiB       32,000 MiB   0%      0            hami-core   ok",
    ]
    assert said("nodes", *api, "-o", "wide").splitlines()[1] == (
        "a      2      NVIDIA A100   4,000 MiB   32,000 MiB   12%     1            hami-core   ok      0%      "
        "16,000 MiB     -"
    )
    assert said("nodes", *api, "-o", "name").split() == ["node/a", "node/b"]
    as_json = json.loads(said("nodes", *api, "-o", "json"))
    assert [one["name"] for one in as_json] == ["a", "b"]
    assert yaml.safe_load(said("nodes", *api, "-o", "yaml")) == as_json


def test_pods_of_a_namespace_or_of_all(api: tuple[str, ...]) -> None:
    """With what they were allocated."""
    cells = [re.split("   +", line) for line in said("pods", *api).splitlines()]
    ages = [line.pop(3) for line in cells]
    assert cells == [
        ["NAMESPACE", "POD", "STATE", "NODE", "GPUS", "ALLOCATED", "REQUEST", "WHY"],
        ["default", "holds", "starting", "a", "1", "4,000 MiB", "-", "-"],
        ["default", "waits", "pending", "-", "0", "-", "1 x 99,000 MiB", cells[2][-1]],
    ]
    assert "99,000 MiB" in cells[2][-1]
    assert ages[0] == "AGE"
    assert all(re.fullmatch(r"\d+[sm]", age) for age in ages[1:])
    assert said("pods", *api, "-A", "-o", "name").split() == ["pod/holds", "pod/waits"]
    assert said("pods", *api, "-n", "empty") == "no pod in empty requests GPUs\n"
    assert gpus.gpu_uuid("a", 0) in said("pods", *api, "-o", "wide") or gpus.gpu_uuid("a", 1) in said(
        "pods", *api, "-o", "wide"
    )


def test_the_fullest_gpu_is_on_top_and_what_is_not_known_is_no_zero(api: tuple[str, ...]) -> None:
    """Nobody has said what is used."""
    lines = said("top", *api).splitlines()
    assert lines[0].split() == ["NODE", "GPU", "MODEL", "ALLOCATED", "USED", "UTIL", "HEALTH", "PODS"]
    assert lines[1].split()[4:] == ["25%", "?", "?", "ok", "default/holds"]
    assert len(lines) == 5
    refused = hamictl("top", *api, "--prometheus", "http://127.0.0.1:1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("hamictl: --prometheus http://127.0.0.1:1: ")


def test_a_gpu_kept_out_of_use_is_not_called_ok(extender: Extender, server: api_server.Running) -> None:
    """Neither by its node nor by itself."""
    note = {"metadata": {"annotations": {"hami.io/device-cordon": gpus.gpu_uuid("a", 1)}}}
    server.request("PATCH", "/api/v1/nodes/a", note, "application/merge-patch+json")
    api = ("--extender", f"http://{extender.api}")

    calls.eventually(lambda: "1 cordoned" in said("nodes", *api))
    rows = [line.split() for line in said("top", *api).splitlines()[1:]]
    assert [row[1] for row in rows if "cordoned" in row] == ["1"]


def test_an_explanation_for_people_and_for_programs(api: tuple[str, ...]) -> None:
    """Node by node."""
    text = said("explain", "waits", *api)
    assert text.startswith(
        "default/waits is pending: no GPU here has 99,000 MiB; the largest has 16,000 MiB (NVIDIA A100)"
        " [SCHED_NEVER_FITS]\n  what to do: Request at most 16000 MiB of each GPU's memory.\nnodes:\n"
    )
    assert "a: GPU memory insufficient (requested 99,000 MiB, available 16,000 MiB) [SCHED_INSUFFICIENT_GPU_ME" in text
    assert json.loads(said("explain", "waits", *api, "-o", "json"))["nodes"][0]["fits"] is False
    assert said("explain", "waits", *api, "-o", "wide").splitlines()[0].split() == ["NODE", "FITS", "CODE", "WHY"]
    assert said("explain", "default/holds", *api) == "default/holds is on node a\n"


def test_what_goes_wrong_is_one_sentence_a_hint_and_a_status(api: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """And no traceback, unless it is requested."""
    absent = hamictl("explain", "nobody", *api)
    assert absent.returncode == 1
    assert absent.stderr.startswith("hamictl: SCHED_NO_SUCH_POD: no pod default/nobody requests GPUs")

    for arguments, start in (
        (("nodes", "--extender", "http://127.0.0.1:1"), "hamictl: no answer from http://127.0.0.1:1"),
        (("nodes", *api, "--token-file", "/nowhere"), "hamictl: --token-file /nowhere"),
        (("snapshot", str(tmp_path / "s")), "hamictl: no kubeconfig: give --kubeconfig or set KUBECONFIG\n"),
        (("simulate",), "hamictl: no kubeconfig: give --kubeconfig or set KUBECONFIG\n"),
        (("nodes",), "hamictl: no kubeconfig: give --kubeconfig or set KUBECONFIG\n"),
        (("doctor",), "hamictl: no kubeconfig: give --kubeconfig or set KUBECONFIG\n"),
        (("gpu", "release", "a", "0"), "hamictl: no kubeconfig: give --kubeconfig or set KUBECONFIG\n"),
        (("gpu", "release", "a", "0", "--kubeconfig", "/nowhere"), "hamictl: the kubeconfig /nowhere cannot be read: "),
        (("nodes", "--extender", "https://127.0.0.1:1", "--ca-file", "/nowhere"), "hamictl: --ca-file /nowhere: "),
        (("nodes", "--extender", "gpu"), "hamictl: no answer from gpu: unknown url type"),
        (("simulate", "--snapshot", "/nowhere"), "hamictl: /nowhere: No such file"),
        (("simulate", "--trace", str(tmp_path)), f"hamictl: no pod list in {tmp_path}"),
        (("simulate", "--trace", str(TRACE), "--until-percent", "much"), "usage: hamictl simulate"),
    ):
        failed = hamictl(*arguments)
        assert failed.returncode == 2, arguments
        assert failed.stderr.startswith(start), failed.stderr
        assert "Traceback" not in failed.stderr
    assert "Traceback" in hamictl("nodes", "--extender", "http://127.0.0.1:1", "--debug").stderr


def test_a_missing_rule_is_named_with_the_command_that_gives_it() -> None:
    """Who may not read learns from the message which rule is missing, and from the hint how to get it."""
    told = {"error_code": "SCHED_READ_FORBIDDEN", "message": "ada may not get gpus.hami.io"}
    with liar.telling({"/api/v1/nodes": told}, 403) as url:
        failed = hamictl("nodes", "--extender", url)

    assert failed.returncode == 2
    assert failed.stderr.startswith("hamictl: SCHED_READ_FORBIDDEN: ada may not get gpus.hami.io\n")
    assert "kubectl create clusterrolebinding NAME --clusterrole=hami-reader --user=USER" in failed.stderr


def test_a_defect_is_one_sentence_too_and_its_traceback_is_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading Python is not needed to know what to do next."""
    monkeypatch.setattr(explain_code, "run", lambda options: dict[str, int]()["gpus"])
    monkeypatch.setattr(sys, "argv", ["hamictl", "explain-code", "X"])

    assert command.main() == 2
    assert capsys.readouterr().err == (
        "hamictl: a defect: KeyError: 'gpus'\n  run it again with --debug, and report what it prints\n"
    )
    monkeypatch.setattr(sys, "argv", ["hamictl", "explain-code", "X", "--debug"])
    with pytest.raises(KeyError):
        command.main()


def test_an_answer_that_is_not_the_read_apis_is_no_answer() -> None:
    """A proxy's page, or another server's JSON."""
    with liar.telling({"/api/v1/nodes": {"nodes": [{"name": "a"}]}}) as url:
        failed = hamictl("nodes", "--extender", url)

    assert failed.returncode == 2
    assert "Object missing required field" in failed.stderr
    assert "is --extender the read API (port 9446)" in failed.stderr


def test_states_are_coloured_on_a_terminal_and_nowhere_else(api: tuple[str, ...]) -> None:
    """What is piped on stays as it was; NO_COLOR is heeded, and a flag wins over both."""
    green = "\033[32mok\033[0m"
    assert green not in said("nodes", *api)
    assert green in on_a_terminal("nodes", *api)
    assert green not in on_a_terminal("nodes", *api, environment={"NO_COLOR": "1"})
    assert green not in on_a_terminal("nodes", *api, "--color", "never")
    assert "\033" not in on_a_terminal("nodes", *api, "-o", "json")
    painted = said("nodes", *api, "--color", "always", "-o", "wide")
    assert painted.replace("\033[32m", "").replace("\033[0m", "") == said("nodes", *api, "-o", "wide")
    assert "\033" not in said("nodes", *api, "--color", "always", "-o", "yaml")
    assert "\033[33mstarting\033[0m" in said("pods", *api, "--color", "always")


def test_the_extender_is_reached_by_kubectl_where_no_url_is_given(api: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """Through a port-forward of its own, which ends with the command."""
    kubectl, asked = tmp_path / "kubectl", tmp_path / "asked"
    kubectl.write_text(
        f"#!/bin/sh\necho \"$@\" > {asked}\necho 'Forwarding from {api[1].removeprefix('http://')} -> 9446'\nsleep 60\n"
    )
    kubectl.chmod(0o755)
    (tmp_path / "config").touch()
    found = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(tmp_path / "config")}

    assert "node/a" in said("nodes", "-o", "name", "--context", "prod", environment=found)
    assert asked.read_text().split() == [
        "--context", "prod", "-n", "hami-system", "port-forward", "deployment/hami-scheduler", ":9446",
    ]  # fmt: skip
    kubectl.write_text("#!/bin/sh\necho 'error: deployments.apps \"hami-scheduler\" not found' >&2\nexit 1\n")
    refused = hamictl("nodes", environment=found)
    assert refused.returncode == 2
    assert refused.stderr == (
        'hamictl: kubectl port-forward: error: deployments.apps "hami-scheduler" not found\n'
        "  does the extender run in namespace hami-system? Set --system-namespace, or --extender URL\n"
    )
    log = 'E1130 12:00:00.000000 7 memcache.go:265] "Unhandled Error" err="couldn\'t get the API group list"'
    sentence = "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
    kubectl.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{log}\nEND\nsleep 0.5\ncat >&2 <<'END'\n{sentence}\nEND\nexit 1\n")
    unreached = hamictl("nodes", environment=found)
    assert unreached.stderr == (
        f"hamictl: kubectl port-forward: {sentence}\n"
        "  does kubectl get nodes work, with the same --kubeconfig and --context? Or set --extender URL\n"
    )


def test_https_without_an_authority_is_verified_by_those_of_the_system(tmp_path: pathlib.Path) -> None:
    """`HAMI_EXTENDER=https://…` ended in "No such file or directory: 'None'"."""
    certificates.write(tmp_path / "crt", tmp_path / "key")
    with liar.telling({"/api/v1/nodes": {"nodes": []}}, tls=(tmp_path / "crt", tmp_path / "key")) as url:
        unknown = hamictl("nodes", environment={"HAMI_EXTENDER": url})
        system = {"HAMI_EXTENDER": url, "SSL_CERT_FILE": str(tmp_path / "crt")}
        assert said("nodes", environment=system) == "no node has GPUs yet\n"
        own = ("--ca-file", str(tmp_path / "crt"))
        assert said("nodes", *own, environment={"HAMI_EXTENDER": url}) == "no node has GPUs yet\n"

    assert unknown.returncode == 2
    assert "certificate verify failed: self-signed certificate" in unknown.stderr


def test_one_node_or_pod_is_shown_by_its_name(api: tuple[str, ...]) -> None:
    """In the singular too, and with its namespace where that is another one."""
    assert said("node", "b", *api, "-o", "name") == "node/b\n"
    assert [one["name"] for one in json.loads(said("nodes", "b", "a", *api, "-o", "json"))] == ["a", "b"]
    assert said("pod", "waits", *api, "-o", "name") == "pod/waits\n"
    assert said("pods", "default/holds", "-n", "empty", *api, "-o", "name") == "pod/holds\n"


@pytest.mark.parametrize(
    ("arguments", "status", "answer"),
    [
        (("noeds",), 2, "no command noeds; did you mean nodes?\n  hamictl --help lists the commands\n"),
        (("zzz",), 2, "no command zzz\n  hamictl --help lists the commands\n"),
        (("nodes", "aa"), 1, "no node aa has GPUs; did you mean a?\n"),
        (("pods", "hold"), 1, "no pod default/hold requests GPUs; did you mean holds?\n"),
        (("pods", "defualt/holds"), 1, "no pod defualt/holds requests GPUs\n  there is one in namespace default\n"),
        (("pods", "holds", "-n", "ai"), 1, "no pod ai/holds requests GPUs\n  there is one in namespace default\n"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_one_that_is_meant(
    api: tuple[str, ...], arguments: tuple[str, ...], status: int, answer: str
) -> None:
    """A list of all choices does not show which one is nearly it."""
    failed = hamictl(*arguments, *(api if arguments[0] in ("nodes", "pods") else ()))

    assert (failed.returncode, failed.stderr) == (status, f"hamictl: {answer}")


def test_a_mistyped_code_is_answered_with_the_one_that_is_meant() -> None:
    failed = hamictl("explain-code", "SCHED_INSUFICIENT_GPU_MEMORY")

    assert failed.returncode == 1
    assert failed.stderr.startswith(
        "hamictl: no such code: SCHED_INSUFICIENT_GPU_MEMORY; did you mean SCHED_INSUFFICIENT_GPU_MEMORY?\n"
    )


def test_the_version_is_the_packages() -> None:
    """The first question of a bug report."""
    assert said("--version") == f"hamictl {version.VERSION}\n"


@contextlib.contextmanager
def watched(*arguments: str) -> Iterator[IO[str]]:
    """The output of a command that goes on."""
    line = [sys.executable, "-m", "hamictl", *arguments, "-w"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()


def test_a_watch_prints_what_changed_with_the_time(
    api: tuple[str, ...], server: api_server.Running, extender: Extender
) -> None:
    """It printed the whole list again, and a reader had to compare them."""
    with watched("pods", *api) as table, watched("pods", *api, "-o", "json") as documents:
        first = [next(table).split() for _ in range(3)]
        assert [line[2] for line in first] == ["POD", "holds", "waits"]
        assert first[0][0] == "TIME"
        present = [json.loads(next(documents)) for _ in range(2)]
        assert [(one["name"], one["change"]) for one in present] == [
            ("pod/default/holds", "present"), ("pod/default/waits", "present"),
        ]  # fmt: skip
        server.request("DELETE", f"{calls.PODS}/waits")
        time, *cells = next(table).split()
        assert re.fullmatch(r"\d\d:\d\d:\d\d", time)
        assert cells[:3] == ["default", "waits", "removed"]
        gone = json.loads(next(documents))
        assert (gone["name"], gone["change"], gone["value"]["phase"]) == ("pod/default/waits", "removed", "pending")
        assert datetime.datetime.fromisoformat(gone["time"]).tzinfo is not None


def test_ctrl_c_ends_a_watch_and_its_connection(api: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """A kubectl port-forward that goes on holds a port and a connection to the cluster for hours."""
    kubectl, forwarding = tmp_path / "kubectl", tmp_path / "forwarding"
    kubectl.write_text(
        f"#!/bin/sh\necho $$ > {forwarding}\necho 'Forwarding from {api[1].removeprefix('http://')} -> 9446'\n"
        "exec sleep 600\n"
    )
    kubectl.chmod(0o755)
    (tmp_path / "config").touch()
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(tmp_path / "config"),
    }  # fmt: skip
    program = [sys.executable, "-c", "import sys; from hamictl import start; sys.exit(start.main())", "pods", "-w"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert next(watch.stdout).startswith("TIME")
        watch.send_signal(signal.SIGINT)
        assert watch.wait(timeout=60) == 130
        assert watch.stderr.read() == ""
    number = int(forwarding.read_text())
    calls.eventually(lambda: not pathlib.Path(f"/proc/{number}").exists())


def test_the_gpus_are_numbers_with_their_units_for_programs(api: tuple[str, ...]) -> None:
    """A script had to cut "4,000 MiB" into a number, and could not tell MiB from percent."""
    first = json.loads(said("top", *api, "-o", "json"))[0]

    assert {key: first[key] for key in first if key not in ("index", "uuid")} == {
        "node": "a", "model": "NVIDIA A100", "memory_mib": 16000, "memory_allocated_mib": 4000, "memory_used_mib": None,
        "cores_percent": 100, "cores_allocated_percent": 0, "utilization_percent": None, "health": "ok",
        "pods": ["default/holds"], "isolation": "hami-core",
    }  # fmt: skip


def test_a_snapshot_is_enough_to_find_out_what_would_fit(
    api: tuple[str, ...], server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """By the code that decides; nothing is written."""
    kubeconfig, file = server.write_kubeconfig(tmp_path / "k"), tmp_path / "cluster.json"
    assert said("snapshot", str(file), "--kubeconfig", str(kubeconfig)) == (
        f"{file}: 2 nodes (2 with records), 2 pods with GPUs\n"
    )
    before = server.request("GET", "/api/v1/pods")["items"]

    live = hamictl("simulate", "-", "--kubeconfig", str(kubeconfig), given=PODS)
    saved = hamictl("simulate", "-", "--snapshot", str(file), given=PODS)

    assert live.stdout == saved.stdout
    assert saved.returncode == 0
    lines = saved.stdout.splitlines()
    assert lines[1].split("   ") == ["ai/train (3 pods)", "a (2), b (1)", "3 GPUs", "3 of 3 fit"]
    assert lines[4].startswith("NVIDIA A100   4      6% -> 48%")
    assert "the names of the GPU resources are not known, nvidia.com/gpu is assumed: " in live.stderr
    wide = said("simulate", "-", "--snapshot", str(file), "-o", "wide", given=PODS).splitlines()
    assert [line.split()[0] for line in wide[1:4]] == ["ai/train-0", "ai/train-1", "ai/train-2"]
    assert server.request("GET", "/api/v1/pods")["items"] == before

    full = hamictl("simulate", "-", "--snapshot", str(file), "--replicas", "5", "-o", "json", given=PODS)
    assert full.returncode == 1
    outcomes = json.loads(full.stdout)["pods"]
    assert [bool(one["node"]) for one in outcomes] == [True, True, True, True, False]
    assert outcomes[4]["code"] == "SCHED_INSUFFICIENT_GPU_MEMORY"

    more = said(
        "simulate", "-", "--snapshot", str(file), "--replicas", "5", "--add-nodes", "1:a100:2", "-o", "name", given=PODS
    )
    assert len(more.split()) == 5
    drained = json.loads(said("simulate", "--snapshot", str(file), "--drain", "a", "-o", "json"))
    assert [(one["pod"], one["node"]) for one in drained["pods"]] == [("default/holds", "b")]


def test_the_names_of_the_resources_are_asked_of_the_extender(
    server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """With renamed resources every pod "requests no nvidia.com/gpu", unless the Deployment has its usual name."""
    kubeconfig = server.write_kubeconfig(tmp_path / "k")
    flags = ("--resource-name", "example.com/vgpu", "--resource-mem", "example.com/vgpumem")
    request = ("simulate", "--gpus", "1", "--gpumem", "999999", "-o", "json", "--kubeconfig", str(kubeconfig))
    with extender_process.running(kubeconfig, tmp_path / "log", *flags) as extender:
        answer = hamictl(*request, "--extender", f"http://{extender.api}")

    assert answer.returncode == 1
    assert answer.stderr == ""
    assert "requested 999999MB" in json.dumps(json.loads(answer.stdout)["pods"])


def test_numbers_out_of_range_are_refused_before_anything_is_made() -> None:
    """A number with a zero too many filled the memory of the machine."""
    for arguments in (("--replicas", "99999999999"), ("--replicas", "-1"), ("--count", "0")):
        refused = hamictl("simulate", "--gpus", "1", *arguments)
        assert refused.returncode == 2
        assert "is not a number from 1 to 10,000" in refused.stderr


def test_a_snapshot_takes_a_profile_of_the_extender_along(
    api: tuple[str, ...], server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """A bug report about a slow extender needs one file; without the flag there is none in it."""
    kubeconfig, file = server.write_kubeconfig(tmp_path / "k"), tmp_path / "cluster.json"
    said("snapshot", str(file), "--kubeconfig", str(kubeconfig), "--profile", "1", *api)

    profile = json.loads(file.read_text())["profile"]
    assert profile["samples"] > 0
    assert any(one["thread"] == "MainThread" for one in profile["stacks"])
    assert len(profile["tasks"]) > 1
    refused = hamictl("snapshot", str(file), "--profile", "61")
    assert (refused.returncode, "from 1 to 60" in refused.stderr) == (2, True)


def test_a_hashed_snapshot_names_nobody_and_schedules_alike(
    api: tuple[str, ...], server: api_server.Running, tmp_path: pathlib.Path
) -> None:
    """For a bug report."""
    kubeconfig, file = server.write_kubeconfig(tmp_path / "k"), tmp_path / "cluster.json"
    said("snapshot", "--hash-names", str(file), "--kubeconfig", str(kubeconfig))

    text = file.read_text()
    for name in ('"holds"', '"waits"', '"default"', '"a"', '"b"'):
        assert name not in text
    assert hamictl("simulate", "-", "--snapshot", str(file), "--replicas", "4", given=PODS).returncode == 0
    assert hamictl("simulate", "-", "--snapshot", str(file), "--replicas", "5", given=PODS).returncode == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{", "is not YAML"), ("kind: ConfigMap\nmetadata: {name: x}", "has no Pod"), ("", "has no Pod"),
        ("kind: Pod\nmetadata: {}\nspec: {}", "not a manifest"), ("kind: Pod\nmetadata: {name: p}", "not a manifest"),
        ("kind: Pod\nmetadata: {name: p}\nspec: {containers: 7}", "not a manifest"), ("- 1", "not a manifest"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused_with_a_sentence(tmp_path: pathlib.Path, given: str, sentence: str) -> None:
    """Before anything is simulated."""
    (tmp_path / "s").write_text('{"version":1,"taken_at":"","nodes":[],"pods":[],"quotas":[]}')
    failed = hamictl("simulate", "-", "--snapshot", str(tmp_path / "s"), given=given)

    assert failed.returncode == 2
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_trace_is_filled_by_our_own_scheduler_before_the_question_is_asked() -> None:
    """Whether a pod would fit is of interest in a cluster that is as full as a real one."""
    empty, half, full = (
        json.loads(said("simulate", "-", "--trace", str(TRACE), "--until-percent", percent, "-o", "json", given=PODS))
        for percent in ("0.1", "50", "100")
    )

    assert empty["trace"] == {"nodes": 45, "gpus": 232, "pods": 0, "placed": 0}
    assert full["trace"] == {"nodes": 45, "gpus": 232, "pods": 261, "placed": 261}
    allocated = [
        sum(model["memory_allocated_mib"] for model in found["models"]["before"]) for found in (empty, half, full)
    ]
    total = sum(model["memory_mib"] for model in full["models"]["before"])
    assert allocated[0] == 0
    assert 0.4 < allocated[1] / total < 0.5
    assert allocated[2] / total > 0.9
    assert all(one["node"] for one in full["pods"])

    alone = hamictl("simulate", "--trace", str(TRACE / "openb-small-pods.csv"))
    assert alone.stderr.startswith("trace: 261 of 261 pods with GPUs placed on 45 nodes with 232 GPUs")
    assert alone.stdout.split()[:5] == ["MODEL", "GPUS", "ALLOCATED", "LARGEST", "FREE"]
    assert alone.returncode == 0
    assert "trace" not in alone.stdout
    assert "\rtrace: 200 of 261 pods placed or rejected" in on_a_terminal("simulate", "--trace", str(TRACE))


def test_pods_of_a_trace_come_in_the_order_of_their_creation(tmp_path: pathlib.Path) -> None:
    """And the last that does not go into the percentage is not looked at, nor any that wants no GPU."""
    (tmp_path / "openb_node_list_gpu_node.csv").write_text("sn,cpu_milli,memory_mib,gpu,model\nn,64000,1,2,T4\n")
    head = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time\n"
    (tmp_path / "openb_pod_list_default.csv").write_text(
        f"{head}last,1,1,1,1000,,30\nfirst,1,1,1,500,,10\nnone,1,1,0,0,,15\nthen,1,1,1,500,,20\n"
    )

    trace = traces.read(tmp_path)

    assert [one["metadata"]["name"] for one in trace.pods] == ["first", "none", "then", "last"]
    assert [one["metadata"]["name"] for one in trace.until(50)] == ["first", "then"]
    assert [one["metadata"]["name"] for one in trace.until(100)] == ["first", "then", "last"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str) -> None:
    """It is made of the parser."""
    script = said("completion", shell)
    for word in ("simulate", "snapshot", "explain-code", "hash-names"):
        assert word in script


def completed(line: str, environment: dict[str, str] | None = None) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split()
    program = f"""{said("completion", "bash")}
      hamictl() {{ {sys.executable} -m hamictl "$@"; }}
      COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE="{line}"
      _hamictl; echo "${{COMPREPLY[@]}}"
    """
    known = {**os.environ, "KUBECONFIG": "/nowhere", **(environment or {})}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, env=known)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_commands_choices_and_names(api: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """Names come from the cluster."""
    reached = {"HAMI_EXTENDER": api[1]}
    assert completed("hamictl sim") == ["simulate"]
    assert completed("hamictl top -o wi") == ["wide"]
    assert completed("hamictl explain-code SCHED_INSUFFICIENT_GPU_M") == ["SCHED_INSUFFICIENT_GPU_MEMORY"]
    assert completed("hamictl node a", reached) == ["a"]
    assert completed("hamictl explain wa", reached) == ["waits"]
    assert completed("hamictl pods default/", reached) == ["default/holds", "default/waits"]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho node/from-$1-$3\necho node/$2\n")
    kubectl.chmod(0o755)
    (tmp_path / "config").touch()
    by_kubectl = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(tmp_path / "config")}
    assert completed("hamictl simulate --drain fr", by_kubectl) == ["from-get--o"]


def test_completion_is_silent_where_the_cluster_does_not_answer() -> None:
    """An error in the middle of a command line would destroy it."""
    assert completed("hamictl explain nosuch") == []
    assert completed("hamictl explain nosuch", {"HAMI_EXTENDER": "http://127.0.0.1:1"}) == []


def test_a_reader_that_stops_reading_is_no_failure(api: tuple[str, ...]) -> None:
    """As with `| head`."""
    command = f"{sys.executable} -m hamictl top {' '.join(api)} | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
