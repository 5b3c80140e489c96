"""Self-signed certificates for servers on this machine."""

import pathlib
import subprocess


def write(certificate: pathlib.Path, key: pathlib.Path, common_name: str = "localhost") -> None:
    """Make a certificate for `localhost` and 127.0.0.1, valid for a day, in place of what was there."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={common_name}",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
