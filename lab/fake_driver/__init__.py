"""A fake driver with GPUs that a test defines: a C library that replaces NVIDIA's, and the state file that it reads.

The library is compiled once into the user's cache; `lab.c_compiler` finds the compiler. Programs load it by
`environment()`, and read every change of the state at their next call.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from lab import c_compiler, gpus
from lab.real import build

_SOURCE = pathlib.Path(__file__).with_name("nvml.c")
_FLAGS = ("-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-Wl,-soname,libnvidia-ml.so.1")
NO_PERMISSION = 4
GPU_IS_LOST = 15
RESET_REQUIRED = 16
NOT_SUPPORTED = -1
"""A value of a field: the driver does not report it."""


@dataclass(slots=True, kw_only=True)
class Gpu:
    """One GPU of the fake driver; change it and `write` the driver."""

    uuid: str
    name: str
    memory_mib: int
    bus_id: str
    minor: int
    used_mib: int = 0
    compute_capability: tuple[int, int] = (8, 0)
    temperature_celsius: int = 40
    limit_celsius: int = 92
    utilization_percent: int = 0
    power_milliwatts: int = 60_000
    uncorrected_errors: int = 0
    rows_failed: int = 0
    recovery_action: int = 0
    mig_mode: int = 0
    clock_event_reasons: int = 0
    resets: int = 0
    """The number of resets since the machine started."""

    def line(self) -> str:
        """Its line in the state file."""
        values = (
            self.uuid, self.name.replace(" ", "+"), self.bus_id, self.minor, self.memory_mib << 20, self.used_mib << 20,
            ".".join(map(str, self.compute_capability)), self.temperature_celsius, self.limit_celsius,
            self.utilization_percent, self.power_milliwatts, self.uncorrected_errors, self.rows_failed,
            self.recovery_action, self.mig_mode, self.clock_event_reasons, self.resets,
        )  # fmt: skip
        return "gpu " + " ".join(map(str, values))


class InUse(Exception):
    """A client holds the GPU, so that it can be neither reset nor switched to another MIG mode."""


@dataclass(slots=True, kw_only=True)
class FakeDriver:
    """The state of a fake driver in a file.

    Attributes:
        path: The file.
        gpus: Its GPUs, in the driver's order.
        rules: Lines such as `fail nvmlDeviceGetUUID 15 2` (function or `*`, code, GPU or -1) and `hang * 2`; `whole` at
            the end leaves the GPU's MIG instances out.
        processes: Lines `process GPU PID BYTES PERCENT`.
        links: Lines `link GPU GPU NVLINKS LEVEL`, level as in `nvmlGpuTopologyLevel_t`.
        migs: Lines `mig GPU UUID BYTES ID START SIZE PROFILE`, the profile as NVML numbers it; with `bare` at the end
            it has no compute instance. Those that programs make lie in a file beside.
        mismatch: Whether library and kernel module have different versions.
        words: Of the driver as a whole: `foreign-pids` lists no process, as to a caller outside the host's PID
            namespace; `old-structs` refuses every versioned structure; `version=…` is that of the driver.
    """

    path: pathlib.Path
    gpus: list[Gpu]
    rules: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    migs: list[str] = field(default_factory=list)
    mismatch: bool = False
    words: list[str] = field(default_factory=list)
    _xids: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Write the state; the driver reads it from the next call on."""
        head = " ".join(["driver", *(["mismatch"] if self.mismatch else []), *self.words])
        lines = [head, *(gpu.line() for gpu in self.gpus)]
        lines += [*self.rules, *self.processes, *self.links, *self.migs, *self._xids]
        beside = self.path.with_suffix(".part")
        beside.write_text("\n".join(lines) + "\n")
        beside.rename(self.path)
        for index in range(len(self.gpus)):  # Clients can lock the folder even if it is read-only for them.
            self._client_file(index).touch()

    def report_xid(self, gpu: int, xid: int) -> None:
        """Let the driver report an XID."""
        self._xids.append(f"xid {len(self._xids) + 1} {gpu} {xid}")
        self.write()

    def reset(self, gpu: int, *, despite_clients: bool = False) -> None:
        """Reset a GPU as `nvidia-smi --gpu-reset` does: this ends what required the reset, and every registration.

        Raises:
            InUse: A process holds the GPU, unless `despite_clients`, as a reset by the hypervisor does.
        """
        with contextlib.nullcontext() if despite_clients else self._alone(gpu):
            self.rules = [rule for rule in self.rules if not _asks_for_reset(rule, gpu)]
            one = self.gpus[gpu]
            one.recovery_action = min(one.recovery_action, 0)
            one.uncorrected_errors = min(one.uncorrected_errors, 0)
            one.resets += 1
            self.write()

    def set_mig_mode(self, gpu: int, mode: int) -> None:
        """Switch the MIG mode of a GPU.

        Raises:
            InUse: A process holds the GPU.
        """
        with self._alone(gpu):
            self.gpus[gpu].mig_mode = mode
            self.write()

    @contextlib.contextmanager
    def _alone(self, gpu: int) -> Iterator[None]:
        with self._client_file(gpu).open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise InUse(f"GPU {gpu} is in use by another client") from cause
            yield

    def _client_file(self, gpu: int) -> pathlib.Path:
        return pathlib.Path(f"{self.path}.gpu{gpu}")

    def environment(self) -> dict[str, str]:
        """Return the variables with which a process loads this driver instead of NVIDIA's."""
        return {"LD_LIBRARY_PATH": str(library().parent), "FAKE_NVML_STATE": str(self.path)}


def _asks_for_reset(rule: str, gpu: int) -> bool:
    """Return whether a rule answers that a GPU needs a reset."""
    words = rule.split()
    return words[0] == "fail" and words[2:4] == [str(RESET_REQUIRED), str(gpu)]


def make(folder: pathlib.Path, node: str, count: int, model: gpus.Model = gpus.A100) -> FakeDriver:
    """Return a written driver with GPUs of one model."""
    driver = FakeDriver(
        path=folder / "gpus.txt",
        gpus=[
            Gpu(
                uuid=gpus.gpu_uuid(node, index),
                name=model.type,
                memory_mib=model.memory_mib,
                bus_id=f"00000000:{0x10 + index:02X}:00.0",
                minor=index,
            )
            for index in range(count)
        ],
    )
    driver.write()
    return driver


def library() -> pathlib.Path:
    """Return the library, compiled if it does not exist yet.

    Raises:
        CompilerFailed: There is no C compiler.
    """
    key = hashlib.sha256(_SOURCE.read_bytes() + b" with soname").hexdigest()[:16]
    found = build.cache_folder() / f"fake-driver-{key}" / "libnvidia-ml.so.1"
    if found.exists():
        return found
    found.parent.mkdir(parents=True, exist_ok=True)
    part = found.with_suffix(f".{os.getpid()}")
    c_compiler.build_library(_SOURCE, part, *_FLAGS)
    with contextlib.suppress(FileExistsError):
        part.rename(found)
    return found
