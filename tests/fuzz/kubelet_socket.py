"""The gRPC socket of the device plugin: bytes, wrong messages, huge ones, unknown methods, streams left half-open."""

import asyncio
import contextlib
import pathlib
import re
import socket
from collections.abc import Iterator

import grpc
import grpc.aio

from protos.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc
from tests.component import gpu_node
from tests.fuzz.listeners import Listener
from tests.fuzz.targets import Check, Defect, Target

_SERVICE = "/v1beta1.DevicePlugin/"
_METHODS = (
    f"{_SERVICE}GetDevicePluginOptions", f"{_SERVICE}Allocate", f"{_SERVICE}PreStartContainer",
    f"{_SERVICE}GetPreferredAllocation", f"{_SERVICE}ListAndWatch", f"{_SERVICE}Nonsense",
    "/v1beta1.Registration/Register",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/", "//", "/\x00",
)  # fmt: skip
_HUGE_BYTES = 5 * 1024 * 1024
"""Above gRPC's limit for a message, 4 MiB."""
_DEFECT = re.compile(rb'"event": ?"defect"|Unexpected \[(?!DecodeError)')
"""In the plugin's log. gRPC itself logs a message that does not decode, which the kubelet never sends."""
_CALL_SECONDS = 60.0
_WAIT_SECONDS = 0.05
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HEADERS = b"\x00\x00\x0a\x01\x05\x00\x00\x00\x01" + b"\x83\x86\x41\x01x\x44\x03/a/"
_DATA = b"\x00\x00\x05\x00\x01\x00\x00\x00\x01" + b"\x00\x00\x00\x00\x00"
_LONG_FRAME = b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"
_ALLOCATE = api_pb2.AllocateRequest(
    container_requests=[api_pb2.ContainerAllocateRequest(devices_ids=["slot-0001", "slot-0002"])]
)
_PREFERRED = api_pb2.PreferredAllocationRequest(
    container_requests=[
        api_pb2.ContainerPreferredAllocationRequest(
            available_deviceIDs=["slot-0001"], must_include_deviceIDs=["slot-0002"], allocation_size=-5
        )
    ]
)
_START = api_pb2.PreStartContainerRequest(devices_ids=["slot-0001"])


def _socket_path(node: gpu_node.GpuNode) -> pathlib.Path:
    (path,) = (node.folder / "kubelet" / "device-plugins").glob("hami-*.sock")
    return path


def _demand_works(node: gpu_node.GpuNode) -> None:
    """Check that the kubelet's calls are still answered, and that the process logged no defect."""
    Listener(node.plugin.addresses["health"], "/readyz", node.plugin, defect=_DEFECT).demand_works()

    async def call() -> api_pb2.DevicePluginOptions:
        async with grpc.aio.insecure_channel(f"unix://{_socket_path(node)}") as channel:
            stub = api_pb2_grpc.DevicePluginStub(channel)
            answer: api_pb2.DevicePluginOptions = await stub.GetDevicePluginOptions(
                api_pb2.Empty(), timeout=_CALL_SECONDS
            )
            return answer

    if not asyncio.run(call()).pre_start_required:
        raise Defect("GetDevicePluginOptions has another answer")


@contextlib.contextmanager
def _wire() -> Iterator[Check]:
    with gpu_node.running() as node:
        path = str(_socket_path(node))
        half_open: list[socket.socket] = []

        def check(data: bytes) -> str:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_CALL_SECONDS)
            connection.connect(path)
            half_open.append(connection)  # The last hundred stay open, without an end.
            if len(half_open) > 100:
                half_open.pop(0).close()
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.settimeout(_WAIT_SECONDS)
                try:
                    return "frames" if connection.recv(65_536) else "closed"
                except TimeoutError:
                    return "no answer"
            return "closed"

        yield check
        _demand_works(node)
        for connection in half_open:
            connection.close()


@contextlib.contextmanager
def _calls() -> Iterator[Check]:
    """The first byte of an input chooses the method, the rest is the message; each hundredth message is huge."""
    with gpu_node.running() as node, asyncio.Runner() as runner:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

        async def opened() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(f"unix://{_socket_path(node)}", options=options)

        channel = runner.run(opened())
        streams: list[object] = []

        async def call(method: str, message: bytes) -> str:
            if method.endswith("ListAndWatch"):
                stream = channel.unary_stream(method, request_serializer=bytes, response_deserializer=bytes)(message)
                streams.append(stream)  # It is read once and never ended, as by a kubelet that hangs.
                del streams[:-20]
                answer: object = await asyncio.wait_for(stream.read(), _CALL_SECONDS)
            else:
                unary = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
                answer = await unary(message, timeout=_CALL_SECONDS)
            return "OK" if isinstance(answer, bytes) else "end"

        def check(data: bytes) -> str:
            method = _METHODS[data[0] % len(_METHODS)] if data else _METHODS[0]
            message = data[1:].ljust(_HUGE_BYTES, b"\x0a") if data and sum(data) % 100 == 0 else data[1:]
            try:
                return runner.run(call(method, message))
            except grpc.aio.AioRpcError as refused:
                if refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Defect(f"{method} is not answered within {_CALL_SECONDS:g} s") from refused
                code = (refused.details() or "").partition(":")[0]
                return code if code.startswith(("ALLOC_", "PLUGIN_")) else refused.code().name

        yield check
        runner.run(channel.close())
        _demand_works(node)


_COVERED = ("device_plugin.kubelet.servicer", "device_plugin.kubelet.registration")
SOCKETS: tuple[Target, ...] = (
    Target(
        name="kubelet's socket: wire", covers=_COVERED, open=_wire, of_processes=True,
        samples=[
            _PREFACE + _SETTINGS, _PREFACE + _SETTINGS + _HEADERS + _DATA, _PREFACE + _LONG_FRAME,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", _SETTINGS * 200,
        ],
    ),
    Target(
        name="kubelet's socket: messages", covers=_COVERED, open=_calls, of_processes=True,
        samples=[
            bytes([number]) + message.SerializeToString()
            for number, message in enumerate((api_pb2.Empty(), _ALLOCATE, _START, _PREFERRED, api_pb2.Empty()))
        ] + [bytes([number]) for number in range(5, len(_METHODS))],
    ),
)  # fmt: skip
