"""The functions of NVIDIA's library that our code calls: read from its source, so that none is missing."""

import inspect
import pathlib
import re

import pynvml

from device_plugin.driver import nvml

_NAME = re.compile(r"pynvml\.(nvml[A-Z]\w*)")
_POINTER = re.compile(r'_nvmlGetFunctionPointer\("(\w+)"\)')
_ALIAS = re.compile(r"return (nvml\w+)\(|^\s+(nvml\w+)\(", re.MULTILINE)


def python_names() -> tuple[str, ...]:
    """Return the functions of the bindings that `device_plugin.driver.nvml` names."""
    text = pathlib.Path(inspect.getfile(nvml)).read_text()
    return tuple(sorted({name for name in _NAME.findall(text) if callable(getattr(pynvml, name, None))}))


def library_name(name: str) -> str:
    """Return the library's function behind a function of the bindings, such as `nvmlDeviceGetCount_v2`."""
    text = inspect.getsource(inspect.unwrap(getattr(pynvml, name)))
    pointers = _POINTER.findall(text)
    if pointers:
        return str(pointers[0])
    found = _ALIAS.search(text)
    assert found, f"{name} calls nothing"
    return library_name(found[1] or found[2])


def library_names() -> tuple[str, ...]:
    """Return the functions of the library that our code calls."""
    return tuple(sorted({library_name(name) for name in python_names()}))


def error_number(name: str) -> int:
    """Return NVML's number of an error, such as `NOT_SUPPORTED`."""
    return int(getattr(pynvml, f"NVML_ERROR_{name}"))
