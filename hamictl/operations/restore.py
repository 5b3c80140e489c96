"""`hamictl ops restore`: write a backup back, after its differences were shown."""

import argparse
import json
import pathlib
from collections.abc import Sequence

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors
from hamictl import failures, flags
from hamictl.operations import backup, backup_file, cluster_state, restore_plan, writing

_SIGNS = {restore_plan.CREATE: "create", restore_plan.CHANGE: "change", restore_plan.SKIP: "skip"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="of hamictl ops backup")
    parser.add_argument(
        "--other-cluster", action="store_true", help="accept a backup of another cluster: its nodes go by their names"
    )
    parser.add_argument(
        "--write-values",
        type=pathlib.Path,
        metavar="FILE",
        help="write the backup's Helm values into a new file, for helm upgrade -f, and nothing else",
    )
    writing.add_flags(parser)
    flags.add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    """Show the differences and write them. Returns the exit status."""
    saved = _load(options.file)
    if options.write_values:
        return _write_values(saved, options.write_values)

    async def read(client: kubernetes.Client) -> cluster_state.ClusterState:
        namespace = options.system_namespace
        return await cluster_state.read(client, namespace, with_secrets=bool(saved.content.secrets), every_node=True)

    state = writing.call(options, read, cluster_state.RIGHTS)
    if saved.cluster_uid != state.uid and not options.other_cluster:
        detail = f"the backup is of the cluster {saved.cluster_uid}, and this is {state.uid}"
        raise writing.refusal(error_codes.OPS_OTHER_CLUSTER, detail)
    steps = restore_plan.steps(saved.content, state.content, state.versions, options.system_namespace)
    print(f"backup of {saved.at}: {saved.content.counts()}")
    for step in steps:
        print(f"{_SIGNS[step.kind]} {step.about}")
        for line in step.lines:
            print(f"  {line}")
    if saved.content.helm_values is not None:
        print(f"Helm values: hamictl ops restore {options.file} --write-values values.json, then helm upgrade -f")
    todo = [step for step in steps if step.kind != restore_plan.SKIP]
    if not todo:
        print("nothing to write: the cluster has what the backup has")
        return 0
    if not options.dry_run:
        writing.confirm(options, f"Write {len(todo)} objects?")

    async def act(client: kubernetes.Client) -> int:
        return await _restore(client, todo, dry_run=options.dry_run)

    rights = "patch nodes, and create and patch configmaps, resourcequotas, priorityclasses and secrets of the backup"
    return writing.call(options, act, rights)


def _load(path: pathlib.Path) -> backup_file.Backup:
    try:
        with path.open("rb") as file:
            data = file.read(backup_file.MOST_BYTES + 1)
    except OSError as cause:
        raise failures.CommandFailed(f"{path}: {cause.strerror}") from cause
    return backup_file.decode(data)


def _write_values(saved: backup_file.Backup, path: pathlib.Path) -> int:
    if saved.content.helm_values is None:
        raise failures.CommandFailed("the backup has no Helm values", status=failures.NEGATIVE)
    if path.exists():
        raise writing.refusal(error_codes.OPS_FILE_EXISTS, f"{path} exists")
    backup.save(path, json.dumps(saved.content.helm_values, indent=1, ensure_ascii=False).encode() + b"\n")
    print(f"{path}: the Helm values of {saved.at}; JSON is YAML, so helm upgrade -f {path} reads it")
    return 0


async def _restore(client: kubernetes.Client, todo: Sequence[restore_plan.Step], *, dry_run: bool) -> int:
    """Do every step; one that fails is reported, and the others are done."""
    failed = 0
    for count, step in enumerate(todo, 1):
        path, body = writing.path_of(step.path, dry_run=dry_run), restore_plan.encode(step)
        try:
            await (client.post(path, body) if step.kind == restore_plan.CREATE else client.patch(path, body))
            writing.progress(f"{count} of {len(todo)}: {step.about} {'checked' if dry_run else 'written'}")
        except errors.Conflict as cause:
            failed += 1
            detail = f"{error_codes.OPS_CHANGED_MEANWHILE}: {step.about} was changed meanwhile: {cause}"
            writing.progress(f"{count} of {len(todo)}: {detail}")
        except (errors.Forbidden, errors.Invalid, errors.NotFound) as cause:
            failed += 1
            writing.progress(f"{count} of {len(todo)}: {step.about} refused: {cause}")
    if dry_run:
        print(f"dry run: the API server accepts {len(todo) - failed} of {len(todo)} writes; nothing was written")
    else:
        print(f"{len(todo) - failed} of {len(todo)} objects written")
    return failures.NEGATIVE if failed else 0
