"""The example programs run: on the lab's node with the driver's stub, and on a laptop without GPU and Kubernetes."""

import json
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from gpu_sharing.core import error_codes, records
from gpu_sharing.workload import memory_fraction
from gpu_sharing.workload.errors import WorkloadError
from tests.component import gpu_node
from tests.support import example_programs

FOLDER = example_programs.FOLDER.parent
FREE = ("--metrics-port", "0")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running() as found:
        yield found


@pytest.fixture
def node(shared: gpu_node.GpuNode) -> Iterator[gpu_node.GpuNode]:
    """The same node for all tests of this file, without pods."""
    yield shared
    for pod in shared.server.request("GET", "/api/v1/namespaces/default/pods")["items"]:
        shared.delete(pod)


def environment(node: gpu_node.GpuNode, name: str, share: str) -> dict[str, str]:
    """What the plugin gives a container, and the stub of the driver in it."""
    started = node.run(node.create(name, share, annotations={records.DECISION: "d-1"}))
    return example_programs.of_container(started.environment) | node.driver.environment()


def post(port: int, value: Any) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(value).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def workload(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gpu_sharing.workload", *arguments]
    found = example_programs.outside_kubernetes() | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=found)


def test_the_training_exports_its_progress_with_the_labels_of_its_slice(
    node: gpu_node.GpuNode, tmp_path: pathlib.Path
) -> None:
    """The example is copied: what it exports has to join the monitor's series."""
    variables = environment(node, "training", "1:4000:30")
    arguments = ("--port", "0", "--epochs", "3", "--linger-seconds", "60")

    with example_programs.running(tmp_path, "tiny_training", *arguments, **variables) as training:
        begun = training.wait_line("training begins")
        training.wait_line("epoch ended")
        text = example_programs.metrics(begun["port"])

    assert (begun["gpus"], begun["memory_mib"], begun["decision_id"]) == (1, [4000], "d-1")
    labels = 'container="c0",namespace="default",pod="training"'
    for name in ("training_loss", "training_accuracy", "learning_rate", "training_epoch", "data_loading_seconds_count"):
        assert f"{name}{{{labels}}}" in text
    gpu = f'container="c0",device="{node.uuid(1)}",gpu_id="0",namespace="default",pod="training"'
    assert f"slice_memory_limit_bytes{{{gpu}}} 4.194304e+09" in text
    assert f"gpu_temperature_celsius{{{gpu}}} 40.0" in text


def test_two_servers_share_a_gpu_and_are_ready_when_they_generated_a_token(
    node: gpu_node.GpuNode, tmp_path: pathlib.Path
) -> None:
    """As `inference.yaml` has them: each by the probe of its manifest."""
    (folder_a := tmp_path / "a").mkdir()
    (folder_b := tmp_path / "b").mkdir()
    first, second = environment(node, "server-a", "0:6000:50"), environment(node, "server-b", "0:6000:50")
    arguments = ("tiny_server", "--host", "127.0.0.1", "--port", "0", *FREE)
    with (
        example_programs.running(folder_a, *arguments, **first) as one,
        example_programs.running(folder_b, *arguments, **second) as other,
    ):
        lines = [one.wait_line("serving"), other.wait_line("serving")]
        probed = workload("probe", *(f"http://localhost:{line['port']}" for line in lines), "--json")
        assert probed.returncode == 0, probed.stdout + probed.stderr
        answer = post(lines[0]["port"], {"prompt": "a slice of", "max_tokens": 3})
        texts = [example_programs.metrics(line["metrics_port"]) for line in lines]

    assert answer["choices"][0]["text"] == " a pod gets"
    labels = 'container="c0",model="tiny-markov",namespace="default",pod="server-a"'
    assert f"inference_tokens_generated_total{{{labels}}} 4.0" in texts[0]
    assert 'pod="server-b"' in texts[1]
    assert all(f'device="{node.uuid(0)}"' in text for text in texts)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": 7}', b'{"max_tokens": 100000}', b"[" * 60_000])
def test_the_server_refuses_what_it_cannot_complete(body: bytes, tmp_path: pathlib.Path) -> None:
    """Examples are copied with their faults."""
    with example_programs.running(tmp_path, "tiny_server", "--host", "127.0.0.1", "--port", "0", *FREE) as server:
        port = server.wait_line("serving")["port"]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        with refused.value:
            assert refused.value.code == 400


def test_without_gpu_and_kubernetes_the_training_runs_and_says_what_it_does_not_know(tmp_path: pathlib.Path) -> None:
    """People try it on a laptop first."""
    with example_programs.running(tmp_path, "tiny_training", "--port", "0", "--epochs", "2") as training:
        begun = training.wait_line("training begins")
        training.wait_line("training ended")
    assert begun["gpus"] == 0
    assert error_codes.WORKLOAD_NO_SLICE in begun["not_known"][0]
    assert "slowest:" in training.log_file.read_text()


def test_the_training_learns(tmp_path: pathlib.Path) -> None:
    """A loss that does not fall would show nothing on the dashboard."""
    with example_programs.running(tmp_path, "tiny_training", "--port", "0", "--epochs", "3") as training:
        training.wait_line("training ended")
    assert [one["accuracy"] for one in training.lines() if one["event"] == "epoch ended"][-1] > 0.9


@pytest.mark.parametrize(
    ("slice_mib", "reported_mib", "isolation", "part", "fraction"),
    [
        (20_000, None, "hami-core", 0.9, 0.9),  # The driver reports the slice.
        (20_000, 81_920, "mig", 0.9, 0.9),  # By the parent's UUID NVML reports the whole GPU.
        (20_480, 81_920, "mps", 0.9, 0.225),
        (20_480, 81_920, "none", 1.0, 0.25),
        (20_480, 81_920, "none (CUDA_DISABLE_CONTROL)", 1.0, 0.25),
        (20_480, 20_480, None, 0.9, 0.9),
        (100_000, 81_920, "none", 0.9, 0.9),
        (1, 81_920, "none", 0.9, 0.001),
        (9_999, 30_000, "mps", 1.0, 0.333),
    ],
)
def test_the_fraction_depends_on_what_the_driver_reports(
    slice_mib: int, reported_mib: int | None, isolation: str | None, part: float, fraction: float
) -> None:
    """0.9 of the whole GPU in a quarter of it fails at the start, or takes the neighbours' memory."""
    assert memory_fraction.fraction(slice_mib, reported_mib, isolation, part) == fraction


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((None, 81_920, "none", 0.9), error_codes.WORKLOAD_NO_SLICE),
        ((4_000, None, "mps", 0.9), error_codes.WORKLOAD_NO_NVML),
        ((4_000, 0, None, 0.9), error_codes.WORKLOAD_NO_NVML),
        ((4_000, 81_920, "none", 0.0), error_codes.WORKLOAD_BAD_SETTING),
        ((4_000, 81_920, "none", 1.1), error_codes.WORKLOAD_BAD_SETTING),
        ((4_000, 81_920, "none", float("nan")), error_codes.WORKLOAD_BAD_SETTING),
    ],
)
def test_a_fraction_that_is_not_known_is_refused(values: tuple[Any, ...], code: error_codes.Code) -> None:
    """A guess would start a server that takes the memory of others."""
    with pytest.raises(WorkloadError) as refused:
        memory_fraction.fraction(*values)
    assert refused.value.code == code


def test_vllm_gets_its_fraction_in_a_container(node: gpu_node.GpuNode) -> None:
    """As `vllm-fraction.yaml` calls it: isolation and slice by the plugin, the GPU's memory by the driver."""
    variables = environment(node, "vllm", "0:20480:50")
    assert workload("memory-fraction", **variables).stdout == "0.900\n"
    shared = workload("memory-fraction", **variables | {"HAMI_SLICE_ISOLATION": "none"})
    total = node.driver.gpus[0].memory_mib
    assert shared.stdout == f"{int(0.9 * 20480 / total * 1000) / 1000:.3f}\n", shared.stderr
    assert workload("memory-fraction", "--gpu", "1", **variables).returncode == 2
    outside = workload("memory-fraction")
    assert (outside.returncode, outside.stdout) == (1, "")
    assert error_codes.WORKLOAD_NO_SLICE in outside.stderr


def test_the_manifests_name_programs_and_arguments_that_exist() -> None:
    """A mistyped path shows only on a cluster."""
    texts = [one["command"] for name in ("training", "inference") for one in containers(name)]
    paths = {word for words in texts for word in words if word.startswith("/programs/")}
    assert paths == {f"/programs/{path.name}" for path in example_programs.FOLDER.glob("*.py")}
    (training,) = containers("training")
    done = subprocess.run(
        [sys.executable, str(example_programs.FOLDER / "tiny_training.py"), *training["args"], "--help"],
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    (server,) = containers("inference")
    probe = server["readinessProbe"]["exec"]["command"]
    assert workload(*probe[3:], "--help").returncode == 0


def containers(name: str) -> list[dict[str, Any]]:
    controller = next(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))
    found: list[dict[str, Any]] = controller["spec"]["template"]["spec"]["containers"]
    return found
