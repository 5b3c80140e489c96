"""`hamictl ops backup`: configuration and learned state of an installation into one file."""

import argparse
import datetime
import json
import os
import pathlib
import tempfile
from typing import Any

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, version
from hamictl import failures, flags
from hamictl.operations import backup_file, cluster_state, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="a new file, which only you may read")
    parser.add_argument("--values", type=pathlib.Path, metavar="FILE", help="the output of helm get values -o json")
    parser.add_argument(
        "--with-secrets",
        action="store_true",
        help="also the installation's Secrets with their contents, and the values in Helm's record of the release",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument("--dry-run", action="store_true", help="show what would be saved, and write no file")
    flags.add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    """Save the backup. Returns the exit status."""
    if options.file.exists() and not options.overwrite:
        raise writing.refusal(error_codes.OPS_FILE_EXISTS, f"{options.file} exists")
    values = _values(options.values) if options.values else None

    async def read(client: kubernetes.Client) -> cluster_state.ClusterState:
        return await cluster_state.read(client, options.system_namespace, with_secrets=options.with_secrets)

    rights = cluster_state.RIGHTS + (", and list secrets there" if options.with_secrets else "")
    state = writing.call(options, read, rights)
    if values is not None:
        state.content.helm_values = values
    if state.content.helm_values is None:
        state.left_out.append("Helm values: helm get values RELEASE -o json > values.json, then --values values.json")
    backup = backup_file.Backup(
        kind=backup_file.KIND, version=backup_file.VERSION,
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), program=version.VERSION,
        cluster_uid=state.uid, namespace=options.system_namespace, content=state.content, left_out=state.left_out,
    )  # fmt: skip
    data = backup_file.encode(backup)
    if not options.dry_run:
        save(options.file, data)
    print(f"{options.file}{' would have' if options.dry_run else ''}: {state.content.counts()}")
    for line in state.left_out:
        print(f"left out: {line}")
    return 0


def _values(path: pathlib.Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > backup_file.MOST_BYTES:
            raise failures.CommandFailed(f"--values {path}: it is larger than {backup_file.MOST_BYTES >> 20} MiB")
        values = json.loads(path.read_text())
    except OSError as cause:
        raise failures.CommandFailed(f"--values {path}: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        sentence = f"--values {path} is not JSON: {failures.first_line(cause)}"
        raise failures.CommandFailed(sentence, "write it by helm get values RELEASE -o json") from cause
    if values is not None and not isinstance(values, dict):
        raise failures.CommandFailed(f"--values {path} is not a JSON object")
    return values or {}


def save(path: pathlib.Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all.

    Raises:
        CommandFailed: It cannot be written.
    """
    try:
        # A temporary file of Python has mode 0600.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                pathlib.Path(file.name).replace(path)
            except BaseException:
                pathlib.Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as cause:
        raise failures.CommandFailed(f"{path}: {cause.strerror}") from cause
