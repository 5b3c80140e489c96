"""The node's entry in the file of all nodes, read again when the file changes."""

import pathlib
from collections.abc import Callable

import structlog

from device_plugin import settings
from device_plugin.settings import Sharing
from gpu_sharing.core import error_codes, errors

log = structlog.get_logger("node")


class NodeFile:
    """The file; a file that cannot be used changes nothing and is logged once.

    Args:
        path: The file; None where there is none.
        default: Sharing by the flags, which the node's entry changes.
        node_name: Its entry counts.
        check: Raises `SettingsError` for sharing that the node cannot offer.

    Attributes:
        sharing: Sharing now.
    """

    def __init__(
        self, path: pathlib.Path | None, default: Sharing, node_name: str, check: Callable[[Sharing], None]
    ) -> None:
        self._path = path
        self._default = default
        self._node_name = node_name
        self._check = check
        self._text: str | None = None
        self.sharing = default

    def reload(self) -> bool:
        """Read the file. Returns whether sharing has changed."""
        text = self._changed_text()
        if text is None:
            return False
        try:
            sharing = settings.for_node(self._default, text, self._node_name) if text else self.sharing
            self._check(sharing)
        except errors.SettingsError as refused:
            log.error("node file not used", error_code=error_codes.PLUGIN_NODE_SETTINGS, cause=str(refused))
            return False
        if sharing == self.sharing:
            return False
        log.info("node file", sharing=str(sharing))
        self.sharing = sharing
        return True

    def _changed_text(self) -> str | None:
        """Return the file's text if it differs from the last one; empty where the file cannot be read."""
        if self._path is None:
            return None
        try:
            text = self._path.read_text()
        except (OSError, UnicodeDecodeError) as cause:
            text = ""
            if self._text != text:
                log.error("node file not read", error_code=error_codes.PLUGIN_NODE_SETTINGS, cause=str(cause))
        if text == self._text:
            return None
        self._text = text
        return text
