"""A caller that does not wait for its answer."""

import http.client


def hang_up(address: str, verb: str, body: bytes) -> None:
    """Send a whole call, and close the connection without an answer, as kube-scheduler does after its timeout."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", f"/{verb}", body, {"Content-Type": "application/json"})
    connection.close()
