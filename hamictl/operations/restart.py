"""`hamictl ops restart`: new pods for one part or all, one part after the other, with the rollout followed."""

import argparse
import datetime
import json
from collections.abc import Sequence

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes
from hamictl import failures, flags
from hamictl.operations import installed, rollouts, writing

_RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
"""kubectl's own annotation of the pod template, which Helm leaves as it is."""
_RIGHTS = "get, list and patch deployments and daemonsets in the extender's namespace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument(
        "part", nargs="?", default="", metavar="PART", help="scheduler, webui, device-plugin, … (default: all in turn)"
    )
    writing.add_timeout(parser)
    writing.add_flags(parser)
    flags.add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    """Restart the parts and follow each rollout. Returns the exit status."""

    async def read(client: kubernetes.Client) -> list[installed.Part]:
        return await installed.parts(client, options.system_namespace)

    known = writing.call(options, read, _RIGHTS)
    if options.part and installed.select(known, options.part).is_on_delete:
        detail = f"the pods of {options.part} are replaced only when they are deleted"
        raise writing.refusal(error_codes.OPS_ENDS_CLIENTS, detail)
    chosen = [installed.select(known, options.part)] if options.part else known
    for part in chosen:
        print(f"{part.title}: {'left as it is: its pods have clients' if part.is_on_delete else 'restart'}")
    chosen = [part for part in chosen if not part.is_on_delete]
    for part in chosen:
        if part.workload.spec.paused:
            raise writing.refusal(error_codes.OPS_ROLLOUT_FAILED, f"{part.title}: {part.rollout.text}")
    if not options.dry_run:
        writing.confirm(options, f"Restart {', '.join(part.title for part in chosen)}?")

    async def act(client: kubernetes.Client) -> int:
        return await _restart(client, chosen, options)

    return writing.call(options, act, _RIGHTS)


async def _restart(client: kubernetes.Client, chosen: Sequence[installed.Part], options: argparse.Namespace) -> int:
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for part in chosen:
        template = {"metadata": {"annotations": {_RESTARTED_AT: moment}}}
        body = {"metadata": {"uid": part.workload.metadata.uid}, "spec": {"template": template}}
        await client.patch(writing.path_of(part.path, dry_run=options.dry_run), json.dumps(body).encode())
        if options.dry_run:
            continue
        seen = await writing.follow(client, part, options.timeout)
        if seen.state is rollouts.State.FAILED:
            raise failures.CommandFailed(
                f"{error_codes.OPS_ROLLOUT_FAILED}: {part.title}: {seen.text}",
                "the parts after it were not restarted; kubectl describe the pods that are not available",
                failures.NEGATIVE,
            )
        print(f"{part.title} is restarted: {seen.text}")
    if options.dry_run:
        print("dry run: the API server accepts the changes; nothing was written")
    return 0
