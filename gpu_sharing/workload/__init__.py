"""What a container sees of its slice, and metrics and logs of the program in it. Imported by users' programs.

It needs the standard library alone; `prometheus-client` and `nvidia-ml-py` (`pip install 'hami-py[workload]'`) are
imported where a function first needs them. Importing starts no thread and opens no file.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_sharing.workload.errors import WorkloadError as WorkloadError
    from gpu_sharing.workload.gpu_monitor import GPUMonitor as GPUMonitor
    from gpu_sharing.workload.inference import InferenceMetricsCollector as InferenceMetricsCollector
    from gpu_sharing.workload.middleware import MetricsASGIMiddleware as MetricsASGIMiddleware
    from gpu_sharing.workload.middleware import MetricsWSGIMiddleware as MetricsWSGIMiddleware
    from gpu_sharing.workload.performance import PerformanceAnalyzer as PerformanceAnalyzer
    from gpu_sharing.workload.slices import GpuSlice as GpuSlice
    from gpu_sharing.workload.slices import Slice as Slice
    from gpu_sharing.workload.slices import headroom_mib as headroom_mib
    from gpu_sharing.workload.slices import my_slice as my_slice
    from gpu_sharing.workload.slices import on_low_headroom as on_low_headroom
    from gpu_sharing.workload.structured_logging import StructuredLogger as StructuredLogger
    from gpu_sharing.workload.training import TrainingMetricsCollector as TrainingMetricsCollector

_MODULES = {
    "WorkloadError": "errors",
    "GPUMonitor": "gpu_monitor",
    "InferenceMetricsCollector": "inference",
    "MetricsASGIMiddleware": "middleware",
    "MetricsWSGIMiddleware": "middleware",
    "PerformanceAnalyzer": "performance",
    "GpuSlice": "slices",
    "Slice": "slices",
    "headroom_mib": "slices",
    "my_slice": "slices",
    "on_low_headroom": "slices",
    "StructuredLogger": "structured_logging",
    "TrainingMetricsCollector": "training",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Return a public name; its module is imported at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return [*globals(), *_MODULES]
