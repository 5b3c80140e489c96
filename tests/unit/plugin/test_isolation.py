import asyncio
import dataclasses
import pathlib
import stat

import pytest

from device_plugin import edits, gpu_source, isolation
from device_plugin.isolation import hami_core, mig, mps, none, table
from gpu_sharing.core import identifiers, records
from gpu_sharing.core.reservations import Share

A, B = identifiers.GpuUuid("GPU-a"), identifiers.GpuUuid("GPU-b")
INSTANCE = gpu_source.MigInstance("MIG-1", "1g.10gb", 10_000)


def device(uuid: identifiers.GpuUuid = A, index: int = 0, **changes: object) -> gpu_source.Device:
    made = gpu_source.Device(uuid, index, "T", 1000, index)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def granted(*shares: Share, **changes: object) -> isolation.Granted:
    values = {
        "allocation": "abc-1", "folder": "u_c", "shares": shares, "devices": (device(),), "environment": {}, **changes,
    }  # fmt: skip
    return isolation.Granted(**values)  # type: ignore[arg-type]


@pytest.fixture
def hook(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "vgpu").mkdir()
    for name in ("libvgpu.so.2.9", "libvgpu.so.2.10", "libvgpu.so.bak", "ld.so.preload"):
        (tmp_path / "vgpu" / name).touch()
    return tmp_path


def test_hami_core_limits_each_gpu_of_a_container(hook: pathlib.Path) -> None:
    """The variables and mounts that the library and HAMi's monitor know."""
    backend = hami_core.HamiCore(hami_core.Options(hook))

    found = backend.edits(granted(Share(A, 4000, 30), Share(B, 2000, 0)), [])

    assert found.environment == {
        "CUDA_DEVICE_MEMORY_LIMIT_0": "4000m",
        "CUDA_DEVICE_MEMORY_LIMIT_1": "2000m",
        "CUDA_DEVICE_SM_LIMIT": "30",
        "CUDA_DEVICE_SM_LIMIT_0": "30",
        "CUDA_DEVICE_SM_LIMIT_1": "0",
        "CUDA_DEVICE_MEMORY_SHARED_CACHE": f"{hook}/vgpu/abc-1.cache",
        "LIBCUDA_LOG_LEVEL": "1",
    }
    assert found.mounts == (
        edits.Mount(f"{hook}/vgpu/containers/u_c", f"{hook}/vgpu", read_only=False),
        edits.Mount(f"{hook}/vgpu/libvgpu.so.2.10", f"{hook}/vgpu/libvgpu.so"),
        edits.Mount("/tmp/vgpulock", "/tmp/vgpulock", read_only=False),
        edits.Mount(f"{hook}/vgpu/ld.so.preload", "/etc/ld.so.preload"),
    )
    cache = hook / "vgpu" / "containers" / "u_c"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o777
    assert list(backend.folders(0.0)) == ["u_c"]
    assert list(backend.folders(60.0)) == []
    backend.forget("u_c")
    assert not cache.exists()


def test_hami_core_without_limits_of_compute_and_with_swapping(hook: pathlib.Path) -> None:
    backend = hami_core.HamiCore(hami_core.Options(hook, oversubscribe=True, disable_core_limit=True))

    found = backend.edits(granted(Share(A, 4000, 30), environment={"CUDA_DISABLE_CONTROL": "true"}), [])

    assert found.environment["CUDA_OVERSUBSCRIBE"] == "true"
    assert found.environment["GPU_CORE_UTILIZATION_POLICY"] == "disable"
    assert "CUDA_DEVICE_SM_LIMIT" not in found.environment
    assert "/etc/ld.so.preload" not in {mount.container for mount in found.mounts}


def test_hami_core_without_its_library_refuses(tmp_path: pathlib.Path) -> None:
    with pytest.raises(isolation.Refused, match=r"no libvgpu\.so"):
        hami_core.HamiCore(hami_core.Options(tmp_path)).edits(granted(Share(A, 1, 0)), [])


def test_hami_core_that_cannot_make_its_folder_refuses(hook: pathlib.Path) -> None:
    (hook / "vgpu" / "containers").touch()

    with pytest.raises(isolation.Refused, match="containers"):
        hami_core.HamiCore(hami_core.Options(hook)).edits(granted(Share(A, 1, 0)), [])


def test_an_unversioned_library_is_mounted_by_the_path_it_leads_to(tmp_path: pathlib.Path) -> None:
    """So that an upgrade of the link does not change it under a running process."""
    (tmp_path / "vgpu").mkdir()
    (tmp_path / "real.so").touch()
    (tmp_path / "vgpu" / "libvgpu.so").symlink_to(tmp_path / "real.so")

    assert hami_core.library(tmp_path) == tmp_path / "real.so"


def test_auto_never_takes_mps(hook: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")

    assert table.mode_of(device(), "auto", hook) == "hami-core"
    assert table.mode_of(device(), "auto", empty) == "none"
    assert table.mode_of(device(), "mps", empty) == "mps"
    assert table.mode_of(device(mig_enabled=True), "auto", hook) == "mig"


def test_time_slicing_adds_nothing() -> None:
    backend = none.TimeSlicing()

    assert backend.edits(granted(Share(A, 1, 0)), []) == edits.NOTHING
    assert backend.visible(granted(Share(A, 1, 0), Share(B, 1, 0))) == ("GPU-a", "GPU-b")


def share(uuid: str = "", profile: str = "", start: int = 0, size: int = 1) -> records.MigShare:
    return records.MigShare(A, uuid, profile, start, size)


def divided(*instances: gpu_source.MigInstance) -> gpu_source.Device:
    return device(mig_enabled=True, migs=instances, most_migs=7)


def test_mig_gives_the_instances_of_the_record() -> None:
    """By UUID or by profile and place; never one that is another's, or that is not there."""
    backend = mig.Mig()
    gpus = (divided(INSTANCE),)
    for one in (share("MIG-1"), share(profile="1g.10gb")):
        mine = granted(Share(A, 1, 0), migs=(one,), devices=gpus)
        assert backend.visible(mine) == ("MIG-1",)
        assert backend.edits(mine, []) == edits.NOTHING
        with pytest.raises(isolation.Refused, match="another container's"):
            backend.edits(mine, [granted(Share(A, 1, 0), migs=(share("MIG-1"),), devices=gpus)])
    with pytest.raises(isolation.Refused, match="MIG-2 does not exist"):
        backend.edits(granted(Share(A, 1, 0), migs=(share("MIG-2"),), devices=gpus), [])
    with pytest.raises(isolation.Refused, match="0 instances for 1 GPUs"):
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
        await mig.Mig().prepare(mine)
        assert made == []
        await mig.Mig(create).prepare(mine)
        assert made == [missing]
        with pytest.raises(isolation.Refused, match=r"9g\.9gb at 0 of GPU-a: no such profile"):
            await mig.Mig(create).prepare(
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
CONTROL = """#!/bin/sh
echo "$CUDA_MPS_PIPE_DIRECTORY $*" >> {folder}/calls
if [ "$1" = -d ]; then sleep 0.3; touch {folder}/running; exit 0; fi
[ -e {folder}/running ] || {{ echo "Cannot find MPS control daemon process"; exit 1; }}
while read -r command; do
  echo "$command" >> {folder}/commands
  case "$command" in
    get_default_active_thread_percentage) echo 100.0 ;;
    quit) rm {folder}/running ;;
  esac
done
"""


@pytest.fixture
def server(tmp_path: pathlib.Path) -> mps.Mps:
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(CONTROL.format(folder=tmp_path))
    program.chmod(0o755)
    return mps.Mps(mps.Options(tmp_path / "mps", str(program)))


def test_the_mps_daemon_is_started_waited_for_told_its_limits_and_ended(
    server: mps.Mps, tmp_path: pathlib.Path
) -> None:
    async def life() -> None:
        with pytest.raises(isolation.Refused, match="does not run"):
            server.edits(granted(Share(A, 1, 0)), [])
        await server.start([device(index=1)])
        await server.start([device(index=1)])  # Registered again: the daemon that runs is kept.
        found = server.edits(granted(Share(A, 4000, 30), Share(B, 2000, 50)), [granted(Share(A, 1, 0))])
        assert found.environment == {
            "CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/mps/pipe",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4000M,1=2000M",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30",
        }
        assert [mount.container for mount in found.mounts] == [f"{tmp_path}/mps/pipe", "/dev/shm"]
        await server.stop()

    asyncio.run(life())

    commands = (tmp_path / "commands").read_text().splitlines()
    assert commands.count("set_default_device_pinned_mem_limit 1 1000M") == 2
    assert commands[-1] == "quit"
    assert (tmp_path / "calls").read_text().count(" -d") == 1
    assert not (tmp_path / "running").exists()


def test_mps_serves_one_user_at_a_time(server: mps.Mps) -> None:
    async def life() -> None:
        await server.start([])
        with pytest.raises(isolation.Refused, match="runs as 7, others on the GPU as 0"):
            server.edits(granted(Share(A, 1, 0), user=7), [granted(Share(A, 1, 0))])

    asyncio.run(life())


def test_without_its_program_mps_says_what_is_missing(tmp_path: pathlib.Path) -> None:
    server = mps.Mps(mps.Options(tmp_path, str(tmp_path / "absent")))

    with pytest.raises(isolation.Refused, match="absent: No such file"):
        asyncio.run(server.start([]))


@pytest.mark.parametrize(("capability", "clients"), [((9, 0), 48), ((7, 0), 48), ((6, 1), 16), ((3, 0), 1)])
def test_how_many_clients_a_gpu_takes(server: mps.Mps, capability: tuple[int, int], clients: int) -> None:
    assert server.most_clients(device(compute_capability=capability)) == clients
