import pathlib

import pytest

from device_plugin.driver import pid_namespace


def status(proc: pathlib.Path, text: str) -> pathlib.Path:
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "status").write_text(text)
    return proc


@pytest.mark.parametrize("text", ["Name:\tpython\nNSpid:\t4711\n", "Name:\tpython\nPid:\t4711\n"])
def test_one_id_is_the_namespace_of_the_hosts_proc(tmp_path: pathlib.Path, text: str) -> None:
    """A kernel that knows no namespaces writes no such line."""
    assert pid_namespace.problem(status(tmp_path, text)) == ""


def test_two_ids_are_a_pod_without_host_pid(tmp_path: pathlib.Path) -> None:
    """The driver then lists no processes, and every container would seem to use nothing."""
    assert "4711, 7" in pid_namespace.problem(status(tmp_path, "NSpid:\t4711\t7\n"))


def test_a_proc_that_does_not_contain_this_process_is_not_the_hosts(tmp_path: pathlib.Path) -> None:
    """Such as one that another container mounted."""
    assert "self/status cannot be read" in pid_namespace.problem(tmp_path)
