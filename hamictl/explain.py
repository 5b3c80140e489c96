"""`hamictl explain`: why a pod is pending, node by node."""

import argparse

from hamictl import failures, flags, output, quiet, reader, views


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("pod", metavar="[NAMESPACE/]POD")
    parser.add_argument("--all", action="store_true", help="list every node, not only the nearest five")
    flags.add_namespace(parser)
    flags.add_reaching(parser)
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the explanation. Returns the exit status."""
    named, _, name = options.pod.rpartition("/")
    namespace = named or flags.namespace(options)
    most_nodes = views.most_nodes_read(options.output, every_node=options.all)
    with reader.reaching(flags.address(options)) as api:
        try:
            explanation = api.explain(namespace, name, most_nodes)
        except failures.CommandFailed as refused:
            from hamictl import absent_pods  # Here, because it imports the extender's code.

            quiet.silence()
            names = api.resource_names()
            raise absent_pods.refusal(options, namespace, name, refused, names=names) from refused
    text = views.explanation(explanation, every_node=options.all)
    if options.output == "table":
        print(text)
    else:
        output.print_rows(
            explanation, views.explanation_rows(explanation), flags.style(options), text,
            names=[f"node/{one.node}" for one in explanation.nodes if one.fits],
        )  # fmt: skip
    return 0
