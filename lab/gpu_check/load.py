"""A program that uses memory and compute of a GPU, with the driver's own library: no framework is needed.

Prints `ready`, or `refused: <call> <code>`, and ends with its input. CUDA_VISIBLE_DEVICES selects the GPU.

Source: CUDA driver API, cuda.h.
"""

import ctypes
import sys
import threading
from collections.abc import Callable


def _allocated(cuda: ctypes.CDLL, size_bytes: int) -> tuple[str, ctypes.c_uint64]:
    """Return the call that was refused, empty if none was, and the address of the memory."""
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    steps: tuple[tuple[str, Callable[[], int]], ...] = (
        ("cuInit", lambda: cuda.cuInit(0)),
        ("cuDeviceGet", lambda: cuda.cuDeviceGet(ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)),
        ("cuCtxSetCurrent", lambda: cuda.cuCtxSetCurrent(context)),
        ("cuMemAlloc_v2", lambda: cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size_bytes))),
    )
    for name, step in steps:
        code = step()
        if code:
            return f"{name} {code}", address
    return "", address


def main() -> int:
    """Allocate the MiB of the first argument."""
    size_bytes = int(sys.argv[1]) << 20
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        print("refused: libcuda.so.1 is not there", flush=True)
        return 1
    refused, address = _allocated(cuda, size_bytes)
    print(f"refused: {refused}" if refused else "ready", flush=True)
    waiting = threading.Thread(target=sys.stdin.read, daemon=True)
    waiting.start()
    while not refused and waiting.is_alive():
        cuda.cuMemsetD8_v2(address, ctypes.c_ubyte(1), ctypes.c_size_t(size_bytes))
        cuda.cuCtxSynchronize()
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
