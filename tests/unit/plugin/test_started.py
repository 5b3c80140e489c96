import pathlib

from device_plugin import started


def process(proc: pathlib.Path, pid: int, cgroup: str, environ: bytes) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cgroup").write_text(cgroup)
    (proc / str(pid) / "environ").write_bytes(environ)


def test_the_first_process_of_a_container_tells_whether_it_has_its_mark(tmp_path: pathlib.Path) -> None:
    """With the cgroup paths of either driver, on cgroup v1 and v2; what is not found is not judged."""
    process(tmp_path, 10, "5:memory:/kubepods/besteffort/podu/aaa\n", b"A=1\0HAMI_ALLOCATION=x-1\0")
    process(tmp_path, 11, "0::/kubepods.slice/kubepods-podu.slice/cri-containerd-bbb.scope\n", b"A=1\0")
    process(tmp_path, 12, "0::/kubepods.slice/kubepods-podu.slice/cri-containerd-bbb.scope\n", b"HAMI_ALLOCATION=y\0")
    process(tmp_path, 13, "0::/init.scope\n", b"")
    (tmp_path / "14").mkdir()  # Has ended meanwhile.
    (tmp_path / "self").mkdir()

    assert started.marks_of(tmp_path, {"aaa", "bbb", "ccc"}) == {"aaa": True, "bbb": False}
