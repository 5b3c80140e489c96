"""`hamictl explain`: why a pod is pending, node by node."""

import argparse

from hamictl import flags, output, reader, views


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags."""
    parser.add_argument("pod", metavar="[NAMESPACE/]POD")
    flags.add_namespace(parser)
    flags.add_reaching(parser)
    flags.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the explanation. Returns the exit status."""
    namespace, _, name = options.pod.rpartition("/")
    with reader.reaching(flags.address(options)) as api:
        explanation = api.explain(namespace or flags.namespace(options), name)
    if options.output == "table":
        print(views.explanation(explanation))
    else:
        output.print_rows(
            explanation, views.explanation_rows(explanation), flags.style(options), views.explanation(explanation),
            names=[f"node/{one.node}" for one in explanation.nodes if one.fits],
        )  # fmt: skip
    return 0
