"""Isolation by CUDA MPS: one server runs the kernels of all clients, each with a limit of memory and threads.

To know before choosing it: limits are per process, so a container with two processes may use twice as much; a
container that removes its own variables falls back to the daemon's default; a fault of one client can end its
neighbours; and one user at a time is served. So `auto` never chooses it.

The daemon's default cannot be narrower than the widest slice, because a client's own limit can only narrow it further
and the default of a running server does not change. It is the memory that the GPU advertises.

Source: docs.nvidia.com/deploy/mps (control daemon's commands, variables of clients, number of clients);
NVIDIA/k8s-device-plugin for limits by index.
"""

import asyncio
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from device_plugin import edits, gpu_source
from device_plugin.isolation import Granted, Refused, none

_COMMAND_SECONDS = 10.0
_READY_SECONDS = 30.0
_READY_POLL_SECONDS = 0.2
_MOST_CLIENTS = ((7, 0, 48), (3, 5, 16))
"""Clients of one GPU by the lowest compute capability that takes so many."""
_PIPE, _LOG, _SHM = "pipe", "log", "shm"

log = structlog.get_logger("mps")


@dataclass(frozen=True, slots=True)
class Options:
    """How the daemon runs."""

    root: pathlib.Path
    """Folder of pipes, logs and shared memory, on the host and here under the same path."""
    program: str = "nvidia-cuda-mps-control"
    multi_user: bool = False
    """Whether the driver lets clients of several users share one server."""


class Mps(none.TimeSlicing):
    """The MPS backend."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._running = False

    async def start(self, devices: Sequence[gpu_source.Device]) -> None:
        """Start the control daemon, wait until it answers, and set what clients get who ask for nothing."""
        for folder in (_PIPE, _LOG, _SHM):
            (self._options.root / folder).mkdir(parents=True, exist_ok=True)
        if not self._running and not await self._answers():
            log.info("starting the control daemon", root=str(self._options.root))
            await self._run("-d")
            await self._ready()
        self._running = True
        for device in devices:
            await self._tell(f"set_default_device_pinned_mem_limit {device.index} {device.memory_mib}M")
        await self._tell("set_default_active_thread_percentage 100")

    async def _ready(self) -> None:
        for tried in range(round(_READY_SECONDS / _READY_POLL_SECONDS)):
            if await self._answers():
                return
            if tried % 25 == 24:
                log.info("waiting for the control daemon", seconds=round((tried + 1) * _READY_POLL_SECONDS))
            await asyncio.sleep(_READY_POLL_SECONDS)
        raise Refused(f"the MPS control daemon does not answer within {_READY_SECONDS:g} s")

    async def _answers(self) -> bool:
        try:
            float(await self._tell("get_default_active_thread_percentage"))
        except (Refused, ValueError):
            return False
        return True

    def most_clients(self, device: gpu_source.Device) -> int:
        """What the compute capability allows."""
        for major, minor, clients in _MOST_CLIENTS:
            if device.compute_capability >= (major, minor):
                return clients
        return 1

    def isolates(self, granted: Granted) -> str:
        """The server."""
        return "mps"

    def edits(self, granted: Granted, neighbours: Iterable[Granted]) -> edits.Edits:
        """The way to the daemon, and limits by the index that the container sees."""
        if not self._running:
            raise Refused("the MPS control daemon does not run (yet)")
        others = {neighbour.user for neighbour in neighbours} - {granted.user}
        if others and not self._options.multi_user:
            raise Refused(
                f"MPS serves one user at a time: this container runs as {granted.user}, others on the GPU as "
                f"{min(others)}; run them as one user, or set --mps-multi-user where the driver allows it"
            )
        root = self._options.root
        limits = ",".join(f"{position}={share.memory_mib}M" for position, share in enumerate(granted.shares))
        environment = {
            "CUDA_MPS_PIPE_DIRECTORY": str(root / _PIPE),
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": limits,
        }
        cores = [share.cores_percent for share in granted.shares if share.cores_percent]
        if cores:
            environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(min(cores))
        mounts = (
            edits.Mount(str(root / _PIPE), str(root / _PIPE), read_only=False),
            edits.Mount(str(root / _SHM), "/dev/shm", read_only=False),  # noqa: S108  # where MPS clients look
        )
        return edits.Edits(environment, mounts)

    async def stop(self) -> None:
        """End the daemon; it ends by itself once its clients are gone."""
        if self._running:
            self._running = False
            try:
                await self._tell("quit")
            except Refused as refused:
                log.warning("the control daemon does not quit", cause=str(refused))

    async def _tell(self, command: str) -> str:
        return await self._run(feed=f"{command}\n")

    async def _run(self, *arguments: str, feed: str = "") -> str:
        options = self._options
        environment = {
            "CUDA_MPS_PIPE_DIRECTORY": str(options.root / _PIPE),
            "CUDA_MPS_LOG_DIRECTORY": str(options.root / _LOG),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        try:
            process = await asyncio.create_subprocess_exec(
                options.program, *arguments, env=environment, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            said, _ = await asyncio.wait_for(process.communicate(feed.encode()), _COMMAND_SECONDS)
        except OSError as cause:
            raise Refused(f"{options.program}: {cause.strerror or cause}") from cause
        except TimeoutError as cause:
            process.kill()
            await process.wait()
            raise Refused(f"{options.program} {feed.strip()}: no answer within {_COMMAND_SECONDS:g} s") from cause
        if process.returncode:
            raise Refused(f"{options.program} {feed.strip()}: {said.decode(errors='replace').strip()[:200]}")
        return said.decode(errors="replace").strip()
