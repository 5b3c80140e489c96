"""Listening sockets: on one address, or on every address of IPv6 and IPv4."""

import socket

from gpu_sharing.adapters import flags


def host_of(address: flags.Address) -> str:
    """Return the host to bind: an empty one is `::`, which serves both families, or `0.0.0.0` without IPv6."""
    return address.host or ("::" if _has_ipv6() else "0.0.0.0")  # noqa: S104  # an empty host means every address


def bound(address: flags.Address) -> socket.socket:
    """Return a TCP socket that is bound and does not listen yet.

    Raises:
        OSError: The address is in use, or not one of this machine.
    """
    host = host_of(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, address.port))
    except OSError:
        sock.close()
        raise
    return sock


def shown(sock: socket.socket) -> str:
    """Return where a socket is bound, as `HOST:PORT` with brackets around an IPv6 address."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _has_ipv6() -> bool:
    """Return whether the kernel lets a socket serve all IPv6 addresses."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
