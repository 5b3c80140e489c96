"""What our processes write is read for secrets after each test that ran them."""

import contextlib
import pathlib
from collections.abc import Iterator

from lab.real import control_plane

_OURS = ("extender*.log", "plugin*.log", "monitor*.log")
_ROLES = ("admin", "scheduler", "extender", "plugin", "node")


@contextlib.contextmanager
def kept(plane: control_plane.ControlPlane, folder: pathlib.Path) -> Iterator[None]:
    """Fail if a log of ours below the folder holds a token of the control plane."""
    yield
    logs = [path for pattern in _OURS for path in folder.rglob(pattern)]
    assert logs, f"no log of ours in {folder}"
    for path in logs:
        text = path.read_text(errors="replace")
        told = [role for role in _ROLES if plane.token(role) in text]
        assert not told, f"{path.name} holds the token of {', '.join(told)}"
        assert "PRIVATE KEY" not in text
        assert "Bearer " not in text
