"""`hamictl nodes`: every node's GPUs, allocated and free."""

import argparse

from gpu_sharing.adapters import read_api_types
from hamictl import failures, flags, output, reader, views, watching


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("names", nargs="*", metavar="NODE", help="only these (default: all)")
    parser.add_argument("-w", "--watch", action="store_true", help="then print each node that changes, with the time")
    flags.add_reaching(parser)
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the nodes. Returns the exit status."""
    style = flags.style(options)
    printer = watching.Printer(style, "STATE", views.NODES_WIDE_ONLY)
    with reader.reaching(flags.address(options)) as api:
        for _ in watching.turns(watching=options.watch):
            nodes = selected(api.nodes(), options.names)
            rows = views.node_rows(nodes)
            if options.watch:
                pairs = zip(nodes, rows, strict=True)
                printer.show({f"node/{one.name}": watching.Item(one, row) for one, row in pairs}, watching.now())
                continue
            output.print_rows(
                nodes, rows, style, "no node has GPUs yet",
                wide_only=views.NODES_WIDE_ONLY, names=[f"node/{one.name}" for one in nodes],
            )  # fmt: skip
    return 0


def selected(nodes: list[read_api_types.Node], names: list[str]) -> list[read_api_types.Node]:
    """Return the named nodes; all where no name is given.

    Raises:
        CommandFailed: There is no node with GPUs of one of the names.
    """
    known = {node.name for node in nodes}
    for name in names:
        if name not in known:
            raise failures.unknown(f"no node {name} has GPUs", name, known)
    return [node for node in nodes if not names or node.name in names]
