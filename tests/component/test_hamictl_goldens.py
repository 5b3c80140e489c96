"""What every command of `hamictl` prints, in every format that it has, held to files.

Who changes a table, a field or a sentence sees here what users will see. `RENEW_GOLDENS=1 pytest` on this file writes
the files anew; read the difference before it is committed.
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

import pytest
import structlog

from hamictl import __main__ as hamictl
from hamictl import commands, completion, output
from lab import api_server, extender_process, gpus, kinds, traces
from lab import faults as lab_faults
from tests.component import calls, golden_files, liar, ops_world
from tests.component.conftest import SMALL
from tests.component.test_doctor import guard, register_webhook
from tests.component.test_hamictl import PODS

COMMANDS = [name for name, _ in commands.subparsers(commands.make_parser())]
API = ("--extender", "{extender}")
HEALTHY = ("doctor", "--kubeconfig", "{kubeconfig}", *API, "--health", "{health}")
UNHEALTHY = ("doctor", "--kubeconfig", "{kubeconfig}", "--extender", "{liar}", "--health", "{liar}")
PARTS = {"nodes": {"healthy": False, "required": False, "reason": "the watch is 90 s old"}}
_FAULT = {
    "id": "f1", "kind": "xid", "group": "gpu", "target": "a/GPU-1", "state": "injected",
    "values": {"node": "a", "gpu": "GPU-1", "xid": 79}, "backend": "lab-gpus", "created_at": 1796067983.0,
    "injected_at": 1796067983.0, "finished_at": 0.0, "duration_seconds": 600, "cause": "",
}  # fmt: skip
FAULTS = [
    _FAULT,
    _FAULT | {
        "id": "f2", "kind": "partition", "group": "network", "target": "ui-extender", "state": "failed",
        "values": {"pair": "ui-extender", "namespace": ""}, "backend": "network-policy", "duration_seconds": 0,
        "injected_at": 0.0, "finished_at": 1796067983.0, "cause": "the API server refuses NetworkPolicy objects",
    },
]  # fmt: skip
ANSWERS = {
    "nodes": (("nodes", *API), 0),
    "pods": (("pods", *API), 0),
    "top": (("top", *API), 0),
    "explain": (("explain", "waits", *API), 0),
    "explain-code": (("explain-code", "SCHED_INSUFFICIENT_GPU_MEMORY"), 0),
    "fault-kinds": (("fault", "kinds"), 0),
    "fault-list": (("fault", "list", "--faults", "{liar}"), 0),
    "fault-show": (("fault", "show", "f2", "--faults", "{liar}"), 0),
    "doctor": (HEALTHY, 0),
    "doctor-findings": (UNHEALTHY, 1),
    "simulate": (("simulate", "{manifest}", "--replicas", "5", "--snapshot", "{snapshot}"), 1),
    "simulate-trace": (("simulate", "{manifest}", "--trace", str(traces.SMALL.parent)), 0),
}
"""Command lines that take `-o`, and their exit status."""
KUBECONFIG = ("--kubeconfig", "{kubeconfig}")
OPERATIONS = {"health": ((*KUBECONFIG, *API, "--health", "{health}"), 1), "disk": (KUBECONFIG, 1)}
"""Operations that take `-o`, and their exit status."""
DRY_RUNS = (
    ("backup", "{folder}/backup.json"), ("cleanup",), ("scale", "3"), ("restart",),
    ("update", "registry.example/hami:0.2.0"),
)  # fmt: skip
CASES = {
    **{
        f"{name}.{form}": ((*line, "-o", form), status)
        for name, (line, status) in ANSWERS.items()
        for form in output.FORMATS
    },
    "nodes-color.table": (("nodes", *API, "--color", "always"), 0),
    **{
        f"ops-{name}.{form}": (("ops", name, *line, "-o", form), status)
        for name, (line, status) in OPERATIONS.items()
        for form in output.FORMATS
    },
    **{f"ops-{line[0]}-dry-run": (("ops", *line, "--dry-run", *KUBECONFIG), 0) for line in DRY_RUNS},
    "snapshot.table": (("snapshot", "{folder}/cluster.json", "--kubeconfig", "{kubeconfig}"), 0),
    **{f"completion.{shell}": (("completion", shell), 0) for shell in completion.SHELLS},
    **{f"{name.replace(' ', '-')}.help": ((*name.split(), "--help"), 0) for name in COMMANDS},
    "hamictl.help": (("--help",), 0),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[golden_files.Subjects]:
    """Two nodes, a pod that holds a share, one that waits, and nothing that is wrong."""
    folder = tmp_path_factory.mktemp("goldens")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(api_server.running())
        nodes = [gpus.gpu_node(name, SMALL, 2) for name in ("a", "b")]
        server.call(lambda: [server.app.store.create(kinds.NODES, "", node) for node in nodes])
        register_webhook(server, "")
        guard(server)
        ops_world.install_chart(server)
        ops_world.write_statuses(server)
        disk = {"availableBytes": 5 << 30, "capacityBytes": 100 << 30}
        summary = {"node": {"fs": disk, "runtime": {"imageFs": {**disk, "availableBytes": 40 << 30}}}}
        server.app.faults.arm(lab_faults.Fault("GET", "nodes/a/proxy/stats", times=1000, answers=summary))
        kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
        extender = stack.enter_context(extender_process.running(kubeconfig, folder / "extender.log"))
        faults = {"/api/v1/faults": {"faults": FAULTS}, "/api/v1/faults/f2": FAULTS[1]}
        believes = faults | {"/api/v1/pods": {"pods": []}, "/healthz": {"components": PARTS}}
        lies = stack.enter_context(liar.telling(believes))
        assert calls.bind(extender, calls.create(server, "holds"), "a") == ""
        calls.create(server, "waits", {**calls.LIMITS, "nvidia.com/gpumem": "99000"})
        calls.eventually(lambda: len(calls.read(extender, "pods")["pods"]) == 2)
        (folder / "manifest.yaml").write_text(PODS)
        places = {
            "extender": f"http://{extender.api}", "health": f"http://{extender.health}", "liar": lies,
            "kubeconfig": str(kubeconfig), "manifest": str(folder / "manifest.yaml"), "folder": str(folder),
            "snapshot": str(folder / "saved.json"),
        }  # fmt: skip
        yield golden_files.Subjects(places)


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """The command silences the logs of its process, which is that of the tests here."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def run(monkeypatch: pytest.MonkeyPatch, world: golden_files.Subjects, line: tuple[str, ...]) -> int:
    monkeypatch.setattr(sys, "argv", ["hamictl", *(part.format(**world.places) for part in line)])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(output, "age", lambda seconds: "5m")
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    try:
        return hamictl.main()
    except SystemExit as asked:
        assert isinstance(asked.code, int)
        return asked.code


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("name", CASES)
def test_a_command_prints_what_its_file_says(
    name: str, world: golden_files.Subjects, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts and eyes rely on it."""
    line, status = CASES[name]
    if "{snapshot}" in line:
        run(monkeypatch, world, ("snapshot", "{snapshot}", "--kubeconfig", "{kubeconfig}"))
        capsys.readouterr()

    assert run(monkeypatch, world, line) == status
    golden_files.compare(name, world.normalised(capsys.readouterr().out))


@pytest.mark.usefixtures("quiet_logs")
def test_a_snapshot_holds_what_its_file_says(world: golden_files.Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version reads what this one saves."""
    run(monkeypatch, world, ("snapshot", "{folder}/kept.json", "--kubeconfig", "{kubeconfig}"))
    golden_files.compare(
        "snapshot.json", world.normalised((pathlib.Path(world.places["folder"]) / "kept.json").read_text())
    )


def test_every_file_belongs_to_a_command_that_there_is() -> None:
    """What is compared with nothing misleads whoever reads it."""
    assert {path.stem for path in golden_files.FOLDER.iterdir()} == {*CASES, "snapshot.json"}
