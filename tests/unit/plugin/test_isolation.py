import asyncio
import contextlib
import fcntl
import os
import pathlib
import platform
import stat
from collections.abc import Iterator

import pytest

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation import hami_core as isolation_core
from device_plugin.isolation import mig, mps, none, table
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import BackendSettings, CannotIsolate
from gpu_sharing.core import identifiers, records
from gpu_sharing.core.allocations import Share
from lab import hami_core

A, B = identifiers.GpuUuid("GPU-a"), identifiers.GpuUuid("GPU-b")
INSTANCE = gpu_source.MigInstance("MIG-1", "1g.10gb", 10_000)


def device(uuid: identifiers.GpuUuid = A, index: int = 0, **changes: object) -> gpu_source.Device:
    values = {"uuid": uuid, "index": index, "name": "T", "memory_mib": 1000, "minor": index, **changes}
    return gpu_source.Device(**values)  # type: ignore[arg-type]


def granted(*shares: Share, **changes: object) -> Assignment:
    values = {
        "pod_uid": "u", "container": "c", "allocation": "abc-1", "shares": shares, "devices": (device(),), **changes,
    }  # fmt: skip
    return Assignment(**values)  # type: ignore[arg-type]


@pytest.fixture
def hook(tmp_path: pathlib.Path) -> pathlib.Path:
    for version in ("v2.9.0", "v2.10.0", "v2.10.0-rc1", "bak", "v3.0.0.part"):
        hami_core.place(tmp_path, version)
    return tmp_path


def core(hook: pathlib.Path, *, disable_core_limit: bool = False) -> isolation_core.HamiCore:
    return isolation_core.HamiCore(BackendSettings(hook_path=hook, disable_core_limit=disable_core_limit))


def mode_of(gpu: gpu_source.Device, choice: str, hook: pathlib.Path) -> str:
    problems = {name: made.problem() for name, made in table.build(BackendSettings(hook_path=hook)).items()}
    return table.mode_of(gpu, choice, problems)


TWO = (device(A, 0, bus_id="00000000:10:00.0"), device(B, 1, bus_id="00000000:11:00.0"))


def test_hami_core_limits_each_gpu_of_a_container(hook: pathlib.Path) -> None:
    """The variables and mounts that the library and HAMi's monitor know."""
    backend = core(hook)

    found = backend.edits(granted(Share(A, 4000, 30), Share(B, 2000, 0), devices=TWO), [])

    assert found.environment == {
        "CUDA_DEVICE_MEMORY_LIMIT_0": "4000m",
        "CUDA_DEVICE_MEMORY_LIMIT_1": "2000m",
        "CUDA_DEVICE_SM_LIMIT": "30",
        "CUDA_DEVICE_SM_LIMIT_0": "30",
        "CUDA_DEVICE_SM_LIMIT_1": "0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_DEVICE_MEMORY_SHARED_CACHE": f"{hook}/vgpu/abc-1.cache",
        "LIBCUDA_LOG_LEVEL": "1",
    }
    folder = hook / "vgpu" / "containers" / "u_c"
    assert found.mounts == (
        edits.Mount(str(folder), f"{hook}/vgpu", read_only=False),
        edits.Mount(f"{hook}/vgpu/libvgpu.so.v2.10.0", f"{hook}/vgpu/libvgpu.so"),
        edits.Mount(f"{folder}/lock", "/tmp/vgpulock", read_only=False),
        edits.Mount(f"{hook}/vgpu/ld.so.preload", "/etc/ld.so.preload"),
    )
    assert (hook / "vgpu" / "ld.so.preload").read_text() == f"{hook}/vgpu/libvgpu.so\n"
    assert list(backend.folders(0.0)) == ["u_c"]
    assert list(backend.folders(60.0)) == []
    backend.delete_folder("u_c")
    backend.delete_folder("u_c")
    assert not folder.exists()


def test_limits_go_by_the_order_in_which_cuda_sees_the_gpus(hook: pathlib.Path) -> None:
    """Else a container with two GPUs has the limit of each on the other one."""
    turned = (device(A, 0, bus_id="00000000:41:00.0"), device(B, 1, bus_id="00000000:11:00.0"))

    found = core(hook).edits(granted(Share(A, 4000, 0), Share(B, 2000, 0), devices=turned), []).environment

    assert found["CUDA_DEVICE_MEMORY_LIMIT_0"] == "2000m"
    assert found["CUDA_DEVICE_MEMORY_LIMIT_1"] == "4000m"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_where_limits_are_the_same_the_order_of_gpus_is_left_to_the_program(hook: pathlib.Path) -> None:
    """A program may rely on CUDA's usual order, the fastest first."""
    found = core(hook).edits(granted(Share(A, 2000, 0), Share(B, 2000, 0), devices=TWO), []).environment

    assert "CUDA_DEVICE_ORDER" not in found


@pytest.mark.parametrize("value", ["1", "t", "T", "TRUE", "true", "True"])
def test_a_container_that_switches_the_library_off_is_not_called_limited(hook: pathlib.Path, value: str) -> None:
    """HAMi reads its switch as Go reads booleans; the event on the pod must say what is so."""
    mine = granted(Share(A, 4000, 30), environment={"CUDA_DISABLE_CONTROL": value})

    assert core(hook).isolation_in_effect(mine) == "none (CUDA_DISABLE_CONTROL)"
    assert "/etc/ld.so.preload" not in {mount.container for mount in core(hook).edits(mine, []).mounts}


@pytest.mark.parametrize("value", ["", "0", "false", "yes", "TrUe"])
def test_what_go_does_not_read_as_true_leaves_the_library_on(hook: pathlib.Path, value: str) -> None:
    mine = granted(Share(A, 4000, 30), environment={"CUDA_DISABLE_CONTROL": value})

    assert core(hook).isolation_in_effect(mine) == "hami-core"
    assert "/etc/ld.so.preload" in {mount.container for mount in core(hook).edits(mine, []).mounts}


def test_hami_core_can_leave_compute_unlimited(hook: pathlib.Path) -> None:
    found = core(hook, disable_core_limit=True).edits(granted(Share(A, 4000, 30)), [])

    assert found.environment["GPU_CORE_UTILIZATION_POLICY"] == "disable"
    assert "CUDA_DEVICE_SM_LIMIT" not in found.environment


def other_machine() -> str:
    return "aarch64" if platform.machine() == "x86_64" else "x86_64"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no shared library"),
        (b"<html>a proxy's page</html>" * 10, "is no shared library"),
        (hami_core.header(other_machine()), f"is not for {platform.machine()}"),
    ],
)
def test_a_library_that_the_loader_would_pass_over_limits_nothing(
    tmp_path: pathlib.Path, content: bytes, reason: str
) -> None:
    """The loader warns on stderr and starts the program without it: the node must not say hami-core."""
    hami_core.place(tmp_path).write_bytes(content)

    with pytest.raises(CannotIsolate, match=rf"libvgpu.so.v2.10.0 {reason}"):
        core(tmp_path).edits(granted(Share(A, 1, 0)), [])
    assert mode_of(device(), "auto", tmp_path) == "none"


def test_a_preload_without_its_library_limits_nothing(hook: pathlib.Path) -> None:
    """As after an upgrade that took the folder away."""
    assert core(hook).problem() == ""
    for path in (hook / "vgpu").glob("libvgpu.so*"):
        path.unlink()

    assert "has no libvgpu.so that can be loaded" in core(hook).problem()
    with pytest.raises(CannotIsolate, match=r"no libvgpu\.so"):
        core(hook).edits(granted(Share(A, 1, 0)), [])


def test_a_library_whose_preload_cannot_be_written_limits_nothing(hook: pathlib.Path) -> None:
    """A library that nothing preloads is a file."""
    (hook / "vgpu" / "ld.so.preload").mkdir()

    assert "ld.so.preload cannot be written" in core(hook).problem()
    assert mode_of(device(), "auto", hook) == "none"


def test_the_preload_file_of_running_containers_is_replaced_and_not_overwritten(hook: pathlib.Path) -> None:
    """They have it mounted: a half-written one would end every program that starts there."""
    preload = hook / "vgpu" / "ld.so.preload"
    preload.write_text("/elsewhere/libvgpu.so\n")
    with preload.open() as mounted:
        core(hook).ready_library()

        assert mounted.read() == "/elsewhere/libvgpu.so\n"
    assert preload.read_text() == f"{hook}/vgpu/libvgpu.so\n"


def test_hami_core_that_cannot_make_its_folder_refuses(hook: pathlib.Path) -> None:
    (hook / "vgpu" / "containers").touch()

    with pytest.raises(CannotIsolate, match="containers"):
        core(hook).edits(granted(Share(A, 1, 0)), [])


def test_an_unversioned_library_is_mounted_by_the_path_it_leads_to(tmp_path: pathlib.Path) -> None:
    """So that an upgrade of the link does not change it under a running process."""
    real = hami_core.place(tmp_path).rename(tmp_path / "real.so")
    (tmp_path / "vgpu" / "libvgpu.so").symlink_to(real)

    assert isolation_core.library(tmp_path) == real


def test_a_container_may_write_its_region_and_its_lock_alone(hook: pathlib.Path) -> None:
    """The folder is the node's disk, and every user of the container reaches it."""
    core(hook).edits(granted(Share(A, 1, 0)), [])

    folder = hook / "vgpu" / "containers" / "u_c"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"u_c": 0o755, "abc-1.cache": 0o666, "lock": 0o1777}


def test_what_a_container_writes_beyond_that_is_cut(hook: pathlib.Path) -> None:
    """Else one tenant fills the node's disk, and the kubelet evicts its neighbours."""
    backend = core(hook)
    backend.edits(granted(Share(A, 1, 0)), [])
    folder = hook / "vgpu" / "containers" / "u_c"
    region, lock = folder / "abc-1.cache", folder / "lock"
    region.write_bytes(b"region")
    (lock / "lock").touch()

    backend.truncate_folders()
    assert (region.read_bytes(), [one.name for one in lock.iterdir()]) == (b"region", ["lock"])

    os.truncate(region, 1 << 40)
    (lock / "deep" / "deeper").mkdir(parents=True)
    (lock / "big").write_bytes(b"x" * 10_000)
    (lock / "away").symlink_to(hook)
    backend.truncate_folders()
    assert region.stat().st_size == 16 << 20
    assert list(lock.iterdir()) == []
    assert (hook / "vgpu").exists()


def test_auto_never_takes_mps(hook: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")

    assert mode_of(device(), "auto", hook) == "hami-core"
    assert mode_of(device(), "auto", empty) == "none"
    assert mode_of(device(), "mps", empty) == "mps"
    assert mode_of(device(mig_enabled=True), "auto", hook) == "mig"


def test_time_slicing_adds_nothing() -> None:
    backend = none.TimeSlicing(BackendSettings())

    assert backend.edits(granted(Share(A, 1, 0)), []) == edits.NOTHING
    assert backend.visible_devices(granted(Share(A, 1, 0), Share(B, 1, 0))) == ("GPU-a", "GPU-b")


def share(uuid: str = "", profile: str = "", start: int = 0, size: int = 1) -> records.MigShare:
    return records.MigShare(A, uuid, profile, start, size)


def divided(*instances: gpu_source.MigInstance) -> gpu_source.Device:
    return device(mig_enabled=True, migs=instances, most_migs=7)


def test_mig_gives_the_instances_of_the_record() -> None:
    """By UUID or by profile and place; never one that is another's, or that is not there."""
    backend = mig.Mig(BackendSettings())
    gpus = (divided(INSTANCE),)
    for one in (share("MIG-1"), share(profile="1g.10gb")):
        mine = granted(Share(A, 1, 0), migs=(one,), devices=gpus)
        assert backend.visible_devices(mine) == ("MIG-1",)
        assert backend.edits(mine, []) == edits.NOTHING
        with pytest.raises(CannotIsolate, match="another container's"):
            backend.edits(mine, [granted(Share(A, 1, 0), migs=(share("MIG-1"),), devices=gpus)])
    with pytest.raises(CannotIsolate, match="MIG-2 does not exist"):
        backend.edits(granted(Share(A, 1, 0), migs=(share("MIG-2"),), devices=gpus), [])
    with pytest.raises(CannotIsolate, match="0 instances for 1 GPUs"):
        backend.edits(granted(Share(A, 1, 0), devices=gpus), [])


def test_mig_instances_are_made_only_where_they_are_ours_and_missing() -> None:
    made: list[records.MigShare] = []

    async def create(one: records.MigShare) -> None:
        made.append(one)
        if one.profile == "9g.9gb":
            raise gpu_source.GpuFailed("no such profile")

    async def story() -> None:
        missing, there = share(profile="3g.40gb", start=4, size=4), share(profile="1g.10gb")
        mine = granted(Share(A, 1, 0), Share(A, 1, 0), migs=(missing, there), devices=(divided(INSTANCE),))
        await mig.Mig(BackendSettings()).prepare(mine)
        assert made == []
        await mig.Mig(BackendSettings(create_instance=create)).prepare(mine)
        assert made == [missing]
        with pytest.raises(CannotIsolate, match=r"9g\.9gb at 0 of GPU-a: no such profile"):
            await mig.Mig(BackendSettings(create_instance=create)).prepare(
                granted(Share(A, 1, 0), migs=(share(profile="9g.9gb"),), devices=(divided(),))
            )

    asyncio.run(story())


def test_mig_instances_that_no_record_names_are_not_needed() -> None:
    second = gpu_source.MigInstance("MIG-2", "1g.10gb", 10_000, start=1)

    assert mig.unneeded(divided(INSTANCE, second), [share(profile="1g.10gb", start=1)]) == ("MIG-1",)
    assert mig.unneeded(divided(INSTANCE, second), [share("MIG-1"), share("MIG-2")]) == ()


def test_what_the_plugin_did_not_make_it_does_not_destroy() -> None:
    """An administrator's instances stay, whole ones and bare ones, unless all are handed over."""
    second = gpu_source.MigInstance("MIG-2", "1g.10gb", 10_000, start=1)
    left = (gpu_source.BareInstance(3, "1g.10gb", 2, 1), gpu_source.BareInstance(4, "2g.20gb", 4, 2))
    gpu = device(mig_enabled=True, migs=(INSTANCE, second), bare_instances=left)
    made = {records.MadeInstance(A, "1g.10gb", start, 1) for start in (1, 2, 3)} | {
        records.MadeInstance(B, "1g.5gb", 0, 1)
    }

    assert mig.unneeded(gpu, [], made) == ("MIG-2",)
    assert mig.unneeded(gpu, []) == ("MIG-1", "MIG-2")
    assert mig.bare(gpu, made) == left[:1]
    assert mig.bare(gpu) == left
    assert mig.foreign_bare(gpu, made) == "GPU instance 4 (2g.20gb at 4)"
    assert mig.foreign_bare(gpu) == ""
    # What is gone is forgotten, so that an instance that is made there later is not taken for its own.
    assert {one[:3:2] for one in mig.still_there([gpu], made)} == {(A, 1), (A, 2), (B, 0)}


# A stand-in that speaks the control daemon's command language and writes down what it was told.
@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[mps.Mps]:
    """With a daemon that is ready."""
    with held(tmp_path):
        (tmp_path / mps.READY).touch()
        yield mps.Mps(BackendSettings(mps_root=tmp_path))


@contextlib.contextmanager
def held(root: pathlib.Path) -> Iterator[None]:
    with (root / mps.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_client_of_mps_gets_its_limits_by_the_order_of_cuda(server: mps.Mps, tmp_path: pathlib.Path) -> None:
    """And the memory that it shares with the server."""
    turned = (device(A, 0, bus_id="00000000:41:00.0"), device(B, 1, bus_id="00000000:11:00.0"))

    found = server.edits(granted(Share(A, 4000, 30), Share(B, 2000, 50), devices=turned), [granted(Share(A, 1, 0))])

    assert found.environment == {
        "CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/pipe",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=2000M,1=4000M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert [mount.container for mount in found.mounts] == [f"{tmp_path}/pipe", "/dev/shm"]
    assert server.isolation_in_effect(granted(Share(A, 1, 0))) == "mps"


def test_without_a_daemon_that_lives_no_client_is_started(tmp_path: pathlib.Path) -> None:
    """It would wait for a pipe that nothing reads; what a daemon left that was killed means nothing."""
    backend = mps.Mps(BackendSettings(mps_root=tmp_path))

    def refuses() -> bool:
        with pytest.raises(CannotIsolate, match="does not run"):
            backend.edits(granted(Share(A, 1, 0)), [])
        return True

    assert refuses()
    (tmp_path / mps.READY).touch()
    assert refuses()
    with held(tmp_path):
        assert mps.is_ready(tmp_path)
        (tmp_path / mps.READY).unlink()
        assert refuses()
    (tmp_path / mps.READY).touch()
    assert refuses()


def test_mps_serves_one_user_at_a_time(server: mps.Mps, tmp_path: pathlib.Path) -> None:
    """A client of another user waits without a word until the first one's server ends."""
    mine = granted(Share(A, 1, 0), user=7)
    with pytest.raises(CannotIsolate, match="runs as 7, others on the GPU as 0"):
        server.edits(mine, [granted(Share(A, 1, 0))])
    several = mps.Mps(BackendSettings(mps_root=tmp_path, mps_multi_user=True))
    assert several.edits(mine, [granted(Share(A, 1, 0))]).environment


def test_the_user_of_an_image_is_not_guessed(server: mps.Mps) -> None:
    """It is not known before the container runs, and then the kubelet says it."""
    unknown = granted(Share(A, 1, 0), user=None)
    assert server.edits(unknown, [granted(Share(A, 1, 0), user=5)]).environment
    assert server.edits(granted(Share(A, 1, 0), user=5), [unknown]).environment

    assert mps.mixed_users([unknown, granted(Share(A, 1, 0), user=5)]) == ""
    assert mps.mixed_users([unknown, granted(Share(A, 1, 0), user=5), granted(Share(A, 1, 0))]) == (
        "containers run as 0, 5"
    )


@pytest.mark.parametrize(("capability", "clients"), [((9, 0), 48), ((7, 0), 48), ((6, 1), 16), ((3, 0), 1)])
def test_how_many_clients_a_gpu_takes(server: mps.Mps, capability: tuple[int, int], clients: int) -> None:
    assert server.most_containers(device(compute_capability=capability)) == clients
