"""`hamictl ops scale`: the number of replicas of the scheduler, with the rollout followed."""

import argparse
import json

from gpu_sharing.adapters import kubernetes
from gpu_sharing.core import error_codes
from hamictl import failures, flags
from hamictl.operations import installed, rollouts, writing

_MOST_REPLICAS = 10
_LEASE = "--leader-lease="
_RIGHTS = "get, list and patch deployments, and list daemonsets, in the extender's namespace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operation's own flags."""
    parser.add_argument("replicas", type=_replicas, metavar="REPLICAS", help=f"1 to {_MOST_REPLICAS}")
    writing.add_timeout(parser)
    writing.add_flags(parser)
    flags.add_cluster(parser)


def _replicas(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 0
    if not 1 <= number <= _MOST_REPLICAS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of replicas from 1 to {_MOST_REPLICAS}")
    return number


def run(options: argparse.Namespace) -> int:
    """Set the number of replicas and follow the rollout. Returns the exit status."""

    async def read(client: kubernetes.Client) -> installed.Part:
        return installed.select(await installed.parts(client, options.system_namespace), installed.SCHEDULER)

    part = writing.call(options, read, _RIGHTS)
    now = 1 if part.workload.spec.replicas is None else part.workload.spec.replicas
    if now == options.replicas:
        print(f"{part.title} has {now} replicas already")
        return 0
    if options.replicas > 1 and not has_lease(part):
        detail = f"the extender of {part.title} has no {_LEASE.rstrip('=')}"
        raise writing.refusal(error_codes.OPS_NO_LEASE, detail)
    print(f"{part.title}: {now} -> {options.replicas} replicas")
    if not options.dry_run:
        writing.confirm(options, f"Scale {part.title} to {options.replicas} replicas?")

    async def act(client: kubernetes.Client) -> int:
        return await _scale(client, part, options)

    return writing.call(options, act, _RIGHTS)


def has_lease(part: installed.Part) -> bool:
    """Return whether the extender acts only as leader: two without a Lease would both bind."""
    return any(str(word).startswith(_LEASE) for _, one in installed.containers(part) for word in one.get("args") or ())


async def _scale(client: kubernetes.Client, part: installed.Part, options: argparse.Namespace) -> int:
    body = {"metadata": {"uid": part.workload.metadata.uid}, "spec": {"replicas": options.replicas}}
    await client.patch(writing.path_of(part.path, dry_run=options.dry_run), json.dumps(body).encode())
    if options.dry_run:
        print("dry run: the API server accepts the change; nothing was written")
        return 0
    seen = await writing.follow(client, part, options.timeout)
    if seen.state is rollouts.State.FAILED:
        raise failures.CommandFailed(
            f"{error_codes.OPS_ROLLOUT_FAILED}: {part.title}: {seen.text}",
            f"the number of replicas stays {options.replicas}; kubectl describe the pods that are not available",
            failures.NEGATIVE,
        )
    print(f"{part.title} has {options.replicas} replicas: {seen.text}")
    print(f"a later helm upgrade sets the number of its values: set scheduler.replicas={options.replicas} there")
    return 0
