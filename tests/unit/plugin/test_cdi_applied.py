import asyncio
import pathlib

import msgspec
import pytest

from device_plugin.allocation import cdi_applied
from device_plugin.node import api_objects, pods
from gpu_sharing.core import identifiers, requests

MARK = b"36 35 0:6 /null /run/hami.io/abc-1 ro,nosuid - devtmpfs udev rw\n"
OTHER = b"30 23 0:26 / /run rw - tmpfs tmpfs rw\n"


def process(proc: pathlib.Path, pid: int, cgroup: str, mounts: bytes | None, environ: bytes | None = None) -> None:
    """A process; what may not be read is a folder, because root may read every file."""
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cgroup").write_text(cgroup)
    for name, content in (("mountinfo", mounts), ("environ", environ)):
        if content is None:
            (proc / str(pid) / name).mkdir()
        else:
            (proc / str(pid) / name).write_bytes(content)


def test_a_container_is_marked_by_its_mounts_which_need_no_right_to_trace_it(tmp_path: pathlib.Path) -> None:
    """With the cgroup paths of either driver, on cgroup v1 and v2; what is not found is not judged."""
    process(tmp_path, 10, "5:memory:/kubepods/besteffort/podu/aaa\n", MARK)
    process(tmp_path, 11, "0::/kubepods.slice/kubepods-podu.slice/cri-containerd-bbb.scope\n", OTHER)
    process(tmp_path, 12, "0::/kubepods/besteffort/podu/ccc\n", None)
    process(tmp_path, 13, "0::/init.scope\n", b"")
    (tmp_path / "14").mkdir()  # Has ended meanwhile.
    (tmp_path / "self").mkdir()

    assert cdi_applied.find_marks(tmp_path, {"aaa", "bbb", "ccc", "ddd"}) == {"aaa": True, "bbb": False, "ccc": None}


def test_one_marked_process_is_enough(tmp_path: pathlib.Path) -> None:
    """A sandbox within the container may have made itself other mounts."""
    for pid, mounts in ((10, OTHER), (11, MARK), (12, None), (13, OTHER)):
        process(tmp_path, pid, "0::/kubepods/podu/aaa\n", mounts)

    assert cdi_applied.find_marks(tmp_path, {"aaa"}) == {"aaa": True}


def test_the_environment_counts_where_it_may_be_read(tmp_path: pathlib.Path) -> None:
    """For containers of a plugin that mounted no mark yet."""
    process(tmp_path, 10, "0::/kubepods/podu/aaa\n", OTHER, b"A=1\0HAMI_ALLOCATION=x-1\0")
    process(tmp_path, 11, "0::/kubepods/podu/bbb\n", None, b"A=1\0")

    assert cdi_applied.find_marks(tmp_path, {"aaa", "bbb"}) == {"aaa": True, "bbb": False}


@pytest.mark.parametrize(
    ("mounts", "outcome"),
    [
        (MARK, ["seen"]),
        (OTHER, ["seen", "unmarked"]),
        (None, ["of default/p may not be read"]),
        (b"gone", ["not found"]),
    ],
)
def test_that_nothing_can_be_judged_is_said_once(
    tmp_path: pathlib.Path, mounts: bytes | None, outcome: list[str]
) -> None:
    """Silence would look as if the runtime had applied every specification."""
    if mounts != b"gone":
        process(tmp_path, 10, "0::/kubepods/podu/aaa\n", mounts)
    body = {
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "status": {"containerStatuses": [{"name": "c", "containerID": "containerd://aaa", "state": {"running": {}}}]},
    }
    here = pods.Pods(requests.ResourceNames(), lambda: None)
    here.changed(msgspec.convert(body, api_objects.Pod))
    said: list[str] = []
    starts = cdi_applied.CdiCheck(
        proc=tmp_path,
        pods=here,
        is_by_cdi=lambda uid, name: (uid, name) == (identifiers.PodUid("u"), "c"),
        unmarked=lambda pod, name: said.append("unmarked"),
        unseen=lambda cause: said.append(cause or "seen"),
    )

    async def story() -> None:
        for _ in range(40):
            await starts.check()

    asyncio.run(story())

    assert len(said) == len(outcome)
    assert all(expected in found for expected, found in zip(outcome, said, strict=True))
