"""The NVIDIA driver of the machine on which the command runs, by ctypes: the command line needs no NVML package."""

import ctypes
import pathlib
import threading
from dataclasses import dataclass, field

from gpu_sharing.core import error_codes
from hamictl.findings import ERROR, Finding

_LIBRARY = "libnvidia-ml.so.1"
_FOLDERS = (
    "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/lib/wsl/lib",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu", "run/nvidia/driver/usr/lib/aarch64-linux-gnu",
    "run/nvidia/driver/usr/lib64",
    "home/kubernetes/bin/nvidia/lib64", "usr/local/nvidia/lib64", "opt/nvidia/lib64",
)  # fmt: skip
"""Where distributions, the GPU operator's driver container and GKE have the library, below the host's root."""
_NEEDED = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetRemappedRows", "nvmlEventSetWait_v2")
"""The newest functions of the library that the device plugin calls."""
_SECONDS = 5.0
_CELSIUS = 0
"""The sensor of a GPU's own temperature."""
_MOST_GPUS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver reports it now; None where the driver does not report a value."""

    index: int
    name: str
    temperature_celsius: int | None
    memory_mib: int | None
    memory_used_mib: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the driver answered."""

    version: str = ""
    cuda: str = ""
    gpus: list[Gpu] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The name of the check, with the versions where they are known."""
        return f"driver {self.version}, CUDA {self.cuda}" if self.version else "driver"


class _Memory(ctypes.Structure):
    """`nvmlMemory_t` of nvml.h."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def read(root: pathlib.Path) -> Reading:
    """Call the driver in a daemon thread, because a driver may hang, which is reported as a finding.

    Args:
        root: The host's root; its library is loaded where this machine's own is missing.
    """
    nvml = _loaded(root)
    if nvml is None:
        return _failed(error_codes.DOCTOR_NODE_DRIVER, _LIBRARY)
    readings: list[Reading] = []
    reading = threading.Thread(target=lambda: readings.append(_read(nvml)), daemon=True)
    reading.start()
    reading.join(_SECONDS)
    silent = f"{_LIBRARY}: no answer within {_SECONDS:g} s"
    return readings[0] if readings else _failed(error_codes.DOCTOR_NODE_NVML, silent)


def _failed(code: error_codes.Code, detail: str) -> Reading:
    return Reading(findings=[Finding(code, ERROR, "node", detail)])


def _loaded(root: pathlib.Path) -> ctypes.CDLL | None:
    """Return the library of this machine, or else the host's."""
    hosts = (root / folder / _LIBRARY for folder in _FOLDERS) if root != pathlib.Path("/") else ()
    for name in (_LIBRARY, *(str(path) for path in hosts if path.exists())):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _read(nvml: ctypes.CDLL) -> Reading:
    code = nvml.nvmlInit_v2()
    if code:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        message = (nvml.nvmlErrorString(code) or b"").decode(errors="replace")
        return _failed(error_codes.DOCTOR_NODE_NVML, f"{_LIBRARY}: {message}")
    version, cuda = ctypes.create_string_buffer(96), ctypes.c_int()
    nvml.nvmlSystemGetDriverVersion(version, len(version))
    if hasattr(nvml, "nvmlSystemGetCudaDriverVersion"):
        nvml.nvmlSystemGetCudaDriverVersion(ctypes.byref(cuda))
    gpus = _gpus(nvml)
    nvml.nvmlShutdown()
    shown = version.value.decode(errors="replace")
    lacking = [name for name in _NEEDED if not hasattr(nvml, name)]
    detail = f"{shown} has no {', '.join(lacking)}"
    old = [Finding(error_codes.DOCTOR_NODE_DRIVER_OLD, ERROR, "node", detail)] if lacking else []
    return Reading(shown, f"{cuda.value // 1000}.{cuda.value % 1000 // 10}", gpus, old)


def _gpus(nvml: ctypes.CDLL) -> list[Gpu]:
    """Return every GPU that the driver hands out; those that it refuses are left out."""
    if not hasattr(nvml, "nvmlDeviceGetCount_v2") or not hasattr(nvml, "nvmlDeviceGetHandleByIndex_v2"):
        return []
    count, gpus = ctypes.c_uint(), []
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    for index in range(min(count.value, _MOST_GPUS)):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
            gpus.append(_gpu(nvml, index, handle))
    return gpus


def _gpu(nvml: ctypes.CDLL, index: int, handle: ctypes.c_void_p) -> Gpu:
    name, celsius, memory = ctypes.create_string_buffer(96), ctypes.c_uint(), _Memory()

    def answered(function: str, *arguments: object) -> bool:
        return hasattr(nvml, function) and getattr(nvml, function)(handle, *arguments) == 0

    named = answered("nvmlDeviceGetName", name, ctypes.c_uint(len(name)))
    warm = answered("nvmlDeviceGetTemperature", ctypes.c_int(_CELSIUS), ctypes.byref(celsius))
    sized = answered("nvmlDeviceGetMemoryInfo", ctypes.byref(memory))
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace") if named else "?",
        temperature_celsius=celsius.value if warm else None,
        memory_mib=memory.total >> 20 if sized else None,
        memory_used_mib=memory.used >> 20 if sized else None,
    )
