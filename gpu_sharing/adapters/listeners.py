"""HTTP listeners: several in one process, which the process stops; they install no signal handlers."""

import asyncio
import contextlib
import os
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

import structlog
import uvicorn

from gpu_sharing.adapters import flags, guarded_http, sockets
from gpu_sharing.core import error_codes

_KEEP_ALIVE_SECONDS = 120
_MOST_CONNECTIONS = 64
_DRAIN_SECONDS = 20
_CERTIFICATE_SECONDS = 2.0

log = structlog.get_logger("listeners")


class Listener(uvicorn.Server):
    """A uvicorn server without signal handlers, which accepts connections within limits.

    Attributes:
        connections: Those that are open.
    """

    def __init__(self, config: uvicorn.Config, most_connections: int) -> None:
        super().__init__(config)
        self.connections = guarded_http.Connections(most_connections)
        self._acceptors: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on some sockets that listen already."""
        await self.lifespan.startup()
        self.servers = []

        def protocol(accepted: object) -> guarded_http.Protocol:
            return guarded_http.Protocol(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                counted=self.connections,
                accepted=accepted,
            )

        self._acceptors = [
            asyncio.create_task(guarded_http.accept(one, self.connections, protocol, self.config.ssl))
            for one in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more calls, and let those in flight finish."""
        for acceptor in self._acceptors:
            acceptor.cancel()
        await asyncio.gather(*self._acceptors, return_exceptions=True)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the process has its own handlers."""
        yield


def listener(
    app: object,
    certificate: pathlib.Path | None = None,
    key: pathlib.Path | None = None,
    *,
    most_connections: int = _MOST_CONNECTIONS,
) -> Listener:
    """Return a listener for an ASGI application, with TLS where there is a certificate."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="httptools",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        ssl_certfile=str(certificate) if certificate else None,
        ssl_keyfile=str(key) if key else None,
    )
    if certificate:
        config.load()  # So that its TLS context exists and can load a newer certificate.
    return Listener(config, most_connections)


async def renew(listeners: Iterable[Listener], certificate: pathlib.Path, key: pathlib.Path) -> None:
    """Load the listeners' certificate again whenever its file changes; ends only by cancellation.

    Open connections keep theirs. If the new certificate cannot be read, the old one stays in use.
    """
    contexts = [one.config.ssl for one in listeners if one.config.ssl]
    seen = _changed_at(certificate, key)
    while True:
        await asyncio.sleep(_CERTIFICATE_SECONDS)
        now = _changed_at(certificate, key)
        if now == seen:
            continue
        try:
            # Tried on a context of its own first: a key of another certificate would leave a context with neither.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
            for context in contexts:
                context.load_cert_chain(certificate, key)
        except OSError as refused:
            # One of the two files may not be written yet: read both again.
            log.error("certificate", error_code=error_codes.CERTIFICATE, cause=str(refused))
            continue
        seen = now
        log.info("certificate read again", file=str(certificate))


def _changed_at(*files: pathlib.Path) -> list[int]:
    times = []
    for file in files:
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime_ns)
    return times


@contextlib.asynccontextmanager
async def serving(
    listeners: Mapping[str, tuple[flags.Address, Listener]], reserved: str = ""
) -> AsyncIterator[Mapping[str, str]]:
    """Serve on all addresses; log and yield the `HOST:PORT` of each.

    All together accept fewer connections than the process may have descriptors; `reserved` names the listener that gets
    its preferred number first.
    """
    wanted = {name: one.connections.most for name, (_, one) in listeners.items()}
    for name, most in guarded_http.shares(wanted, guarded_http.raise_descriptor_limit(), reserved).items():
        listeners[name][1].connections.most = most
    bound = {name: sockets.bound(address) for name, (address, _) in listeners.items()}
    # Listen before the log line, so that a reader of the line can connect.
    for sock in bound.values():
        sock.listen(2048)
    shown = {name: sockets.shown(sock) for name, sock in bound.items()}
    log.info("listening", pid=os.getpid(), **shown)
    tasks = [asyncio.create_task(one.serve(sockets=[bound[name]])) for name, (_, one) in listeners.items()]
    try:
        yield shown
    finally:
        stop(listeners)
        await asyncio.gather(*tasks)


def stop(listeners: Mapping[str, tuple[flags.Address, Listener]]) -> None:
    """Accept no new calls; those in flight finish."""
    for _, bound in listeners.values():
        bound.should_exit = True
