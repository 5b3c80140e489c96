"""`hamictl ops notify`: send a text to a webhook, such as Slack's, whose address stays secret.

The address comes from a file or the environment, so that neither `ps` nor a log shows it; errors name its host only.
"""

import argparse
import http.client
import json
import os
import pathlib
import sys
import urllib.error
import urllib.parse

from gpu_sharing.adapters import http_get
from gpu_sharing.core import error_codes
from hamictl import failures
from hamictl.operations import writing

VARIABLE = "HAMI_NOTIFY_URL"
_MOST_CHARACTERS = 3000
_LONGEST_URL = 4096
_MOST_ANSWER_BYTES = 64 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument("--text", required=True, metavar="TEXT", help="what to send; - reads it from standard input")
    parser.add_argument(
        "--url-file",
        type=pathlib.Path,
        metavar="FILE",
        help=f"a file with the address alone (default: the variable {VARIABLE})",
    )
    parser.add_argument("--timeout", type=writing.seconds, default=15.0, metavar="SECONDS", help="default 15")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be sent and to which host, and send nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Send the text. Returns the exit status."""
    url = _url(options.url_file)
    host = urllib.parse.urlsplit(url).hostname
    text = shortened(sys.stdin.read(_MOST_CHARACTERS + 1) if options.text == "-" else options.text)
    if not text.strip():
        raise failures.CommandFailed("there is no text to send", status=failures.NEGATIVE)
    body = json.dumps({"text": text}).encode()
    if options.dry_run:
        print(f"dry run: {len(body)} bytes would be sent to {host}: {body.decode()}")
        return 0
    try:
        http_get.read(
            url, options.timeout, {"Content-Type": "application/json"}, most_bytes=_MOST_ANSWER_BYTES, body=body
        )
    except urllib.error.HTTPError as refused:
        raise writing.refusal(error_codes.OPS_NOTIFY_REFUSED, f"{host} answered status {refused.code}") from None
    except (OSError, ValueError, http.client.HTTPException) as cause:
        # Neither the cause's text nor its traceback: they may contain the address.
        kind = type(getattr(cause, "reason", cause)).__name__
        raise failures.CommandFailed(f"no answer from {host}: {kind}", "is the address right?") from None
    print(f"sent to {host}")
    return 0


def shortened(text: str) -> str:
    """Return a text within the limit, its end cut off."""
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def _url(path: pathlib.Path | None) -> str:
    """Return the address.

    Raises:
        CommandFailed: There is none, or it is not one; its text is not shown.
    """
    source = f"--url-file {path}" if path else VARIABLE
    try:
        if path is None:
            text = os.environ.get(VARIABLE, "")
        else:
            with path.open() as file:
                text = file.read(_LONGEST_URL + 1)
    except OSError as cause:
        raise failures.CommandFailed(f"{source}: {cause.strerror}") from cause
    except UnicodeDecodeError:
        text = ""
    url = text.strip()
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or len(url) > _LONGEST_URL or not url.isascii() or any(one.isspace() for one in url):
        raise writing.refusal(error_codes.OPS_NOTIFY_URL, f"{source} has no address with http:// or https://")
    return url
