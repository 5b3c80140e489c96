"""`hamictl ops`: operate an installation."""

import argparse

from hamictl import commands

OPERATIONS = (
    commands.Command(
        name="health", module="operations.health", text="the whole installation on one screen; nothing is written",
        statuses="0 all is well, 1 a part is not, 2 no answer",
        examples=("hamictl ops health", "hamictl ops health --prometheus http://localhost:9090"),
    ),
    commands.Command(
        name="backup", module="operations.backup",
        text="save configuration and learned state of the installation in one file",
        statuses="0 saved, 1 refused, 2 no answer",
        examples=("hamictl ops backup hami.json", "hamictl ops backup hami.json --values values.json"),
    ),
    commands.Command(
        name="restore", module="operations.restore",
        text="show how the cluster differs from a backup, and write the backup back",
        statuses="0 written, 1 refused or not all written, 2 no answer",
        examples=(
            "hamictl ops restore hami.json --dry-run", "hamictl ops restore hami.json --write-values values.json",
        ),
    ),
    commands.Command(
        name="cleanup", module="operations.cleanup",
        text="delete failed and evicted pods with GPU requests, and report what nodes have left",
        statuses="0 done, 1 refused or not all deleted, 2 no answer",
        examples=("hamictl ops cleanup --older-than 7d --dry-run", "hamictl ops cleanup -n ai --yes"),
    ),
    commands.Command(
        name="scale", module="operations.scale",
        text="set the number of the scheduler's replicas, and follow the rollout",
        statuses="0 rolled out, 1 refused or not rolled out, 2 no answer", examples=("hamictl ops scale 2",),
    ),
    commands.Command(
        name="update", module="operations.update",
        text="check an image, set it in the parts that run it, and roll back if a rollout fails",
        statuses="0 rolled out, 1 refused or rolled back, 2 no answer",
        examples=(
            "hamictl ops update ghcr.io/hami-py/hami:0.2.0", "hamictl ops update REPOSITORY@sha256:… --part webui",
        ),
    ),
    commands.Command(
        name="restart", module="operations.restart", text="restart one part or all in turn, and follow the rollouts",
        statuses="0 restarted, 1 refused or not rolled out, 2 no answer",
        examples=("hamictl ops restart scheduler", "hamictl ops restart --yes"),
    ),
    commands.Command(
        name="disk", module="operations.disk", text="free disk space of the nodes with GPUs; nothing is written",
        statuses="0 enough everywhere, 1 a node is short, 2 no answer", examples=("hamictl ops disk --least-free 20",),
    ),
    commands.Command(
        name="notify", module="operations.notify",
        text="send a text to a webhook, such as Slack's, whose address stays secret",
        statuses="0 sent, 1 refused, 2 no answer",
        examples=("hamictl ops notify --url-file /etc/hami/slack-url --text 'the nightly run failed'",),
    ),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the operations; each has a parser and a `run` of its own."""
    added = parser.add_subparsers(required=True, metavar="OPERATION")
    for operation in OPERATIONS:
        commands.add_command(added, operation)
