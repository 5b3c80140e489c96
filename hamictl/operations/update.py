"""`hamictl ops update`: another image for the parts that run it, checked before, rolled back if the rollout fails."""

import argparse
import json
from collections.abc import Sequence

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes, errors
from hamictl import failures, flags
from hamictl.operations import image_check, images, installed, rollouts, writing

_RIGHTS = "get, list and patch deployments and daemonsets, and create, get and delete pods, in the extender's namespace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument("image", metavar="IMAGE", help="with a tag or a digest, such as ghcr.io/hami-py/hami:0.2.0")
    parser.add_argument("--part", default="", metavar="PART", help="only this part (default: all that run the image)")
    parser.add_argument(
        "--skip-image-check", action="store_true", help="do not pull the image in a pod of its own before"
    )
    writing.add_timeout(parser)
    writing.add_flags(parser)
    flags.add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    """Check the image, update the parts in turn, and roll all back if one fails. Returns the exit status."""
    reference = images.parse(options.image)

    async def read(client: kubernetes.Client) -> list[installed.Part]:
        return await installed.parts(client, options.system_namespace)

    known = writing.call(options, read, _RIGHTS)
    chosen = [installed.select(known, options.part)] if options.part else known
    changes = images.changes(chosen, reference)
    for change in changes:
        for container, before in change.before.items():
            print(f"{change.part.title}: {container}: {before} -> {options.image}")
        if change.part.is_on_delete:
            print(f"{change.part.title}: its pods get the image when they are deleted, one node after the other")
    if not changes:
        print(f"every part that runs {reference.name} has {options.image} already")
        return 0
    if not options.dry_run:
        writing.confirm(options, f"Update {', '.join(change.part.title for change in changes)}?")

    async def act(client: kubernetes.Client) -> int:
        return await _act(client, changes, options)

    return writing.call(options, act, _RIGHTS)


async def _act(client: kubernetes.Client, changes: Sequence[images.Change], options: argparse.Namespace) -> int:
    for change in changes:
        await _write(client, change, options.image, dry_run=True)
    if options.dry_run:
        print("dry run: the API server accepts the changes; the image was not pulled, and nothing was written")
        return 0
    if not options.skip_image_check:
        await _check(client, changes[0], options)
    undo = ", ".join(f"kubectl -n {options.system_namespace} rollout undo {change.part.title}" for change in changes)
    writing.progress(f"if this command is interrupted, the way back is: {undo}")
    written: list[images.Change] = []
    for change in changes:
        written.append(change)
        try:
            await _write(client, change, options.image, dry_run=False)
            seen = await writing.follow(client, change.part, options.timeout)
        except errors.KubernetesError as cause:
            seen = rollouts.Rollout(rollouts.State.FAILED, str(cause))
        if seen.state is rollouts.State.FAILED:
            raise await roll_back(client, written, options, f"{change.part.title}: {seen.text}")
        print(f"{change.part.title} runs {options.image}: {seen.text}")
    print("a later helm upgrade sets the images of its values: set the tag or digest there too")
    return 0


async def _check(client: kubernetes.Client, change: images.Change, options: argparse.Namespace) -> None:
    """Pull and start the image in a pod of its own, where the first part runs.

    Raises:
        CommandFailed: It cannot be pulled or does not start.
    """
    writing.progress(f"{options.image}: checked in a pod of its own")
    verdict = await image_check.check(client, change.part, options.image, options.timeout)
    if not verdict.is_usable:
        raise writing.refusal(error_codes.OPS_IMAGE_UNUSABLE, f"{options.image}: {verdict.text}")
    print(f"{options.image} was pulled and starts: {verdict.text}")


async def _write(client: kubernetes.Client, change: images.Change, image: str, *, dry_run: bool) -> None:
    body = images.patch(change, dict.fromkeys(change.before, image))
    await client.patch_items(writing.path_of(change.part.path, dry_run=dry_run), json.dumps(body).encode())


async def roll_back(
    client: kubernetes.Client, written: Sequence[images.Change], options: argparse.Namespace, cause: str
) -> failures.CommandFailed:
    """Write the images of before, the newest change first, and follow each rollout. Returns the command's failure.

    A part whose image was changed again meanwhile, or was never written, is left as it is.
    """
    writing.progress(f"{cause}: rolled back")
    left: list[str] = []
    for change in reversed(written):
        title = change.part.title
        try:
            now = installed.Part(change.part.kind, await client.get(change.part.path, rollouts.Workload))
            if not images.differs(now, change, change.before):
                continue
            if images.differs(now, change, dict.fromkeys(change.before, options.image)):
                left.append(f"{title} was changed again by another client")
                continue
            await client.patch_items(change.part.path, json.dumps(images.patch(change, change.before)).encode())
        except errors.KubernetesError as problem:
            left.append(f"{title}: {problem}")
            continue
        seen = await writing.follow(client, change.part, options.timeout)
        if seen.state is rollouts.State.FAILED:
            left.append(f"{title}: {seen.text}")
    if left:
        return writing.refusal(error_codes.OPS_ROLLBACK_FAILED, f"{cause}; not rolled back: {'; '.join(left)}")
    return writing.refusal(error_codes.OPS_ROLLED_BACK, f"{cause}; every part has its image of before again")
