"""What importing costs and brings along."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[3]


def output(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_brings_the_standard_library_alone_and_starts_no_thread() -> None:
    """It is imported by users' programs, whose packages have other versions, and which fork."""
    program = """
import sys, threading, json, importlib, pkgutil
import gpu_sharing.workload as workload
light = sorted(name for name in sys.modules if name.startswith("gpu_sharing"))
for name in workload.__all__:
    getattr(workload, name)
foreign = sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"__main__"})
print(json.dumps([light, [one for one in foreign if "hami" not in one and "editable" not in one],
    sorted(name for name in sys.modules if name.startswith("gpu_sharing.") and "workload" not in name),
    threading.active_count()]))
"""
    light, foreign, ours, threads = json.loads(output(program))

    assert light == ["gpu_sharing", "gpu_sharing.workload"]
    installed = json.loads(
        output("import sys, json; print(json.dumps([one.partition('.')[0] for one in sys.modules]))")
    )
    assert set(foreign) - set(installed) == {"gpu_sharing"}
    assert all(name == "gpu_sharing.core" or name.startswith("gpu_sharing.core.") for name in ours)
    assert threads == 1


def test_every_public_name_is_there_and_another_is_an_attribute_error() -> None:
    """A misspelled name fails at the line that has it."""
    program = (
        "import gpu_sharing.workload as workload\n"
        "print(all(hasattr(workload, name) and name in dir(workload) for name in workload.__all__))\n"
        "print(hasattr(workload, 'GpuMonitor'))"
    )
    assert output(program).split() == ["True", "False"]


def test_without_prometheus_client_the_slice_works_and_a_collector_says_what_to_install() -> None:
    """The package is optional, and its absence is no ImportError from inside of ours."""
    program = """
import sys
sys.modules["prometheus_client"] = None
from gpu_sharing import workload
print(workload.my_slice().gpus, workload.headroom_mib())
for name in ("TrainingMetricsCollector", "InferenceMetricsCollector"):
    try:
        getattr(workload, name)()
    except workload.WorkloadError as error:
        print(error)
"""
    lines = output(program).splitlines()

    assert lines[0] == "() None"
    assert lines[1:] == ["WORKLOAD_NO_PROMETHEUS: install hami-py[workload]"] * 2
