"""What helm has rendered, with what this machine has not put into the templates of pods.

`python -m tests.e2e.post_renderer FOLDER API_PORT`, from standard input to standard output: helm's post-renderer.
"""

import pathlib
import sys

import yaml

from tests.e2e import installed_chart


def main() -> None:
    """Fit every Deployment."""
    folder, api_port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    documents = [one for one in yaml.safe_load_all(sys.stdin) if one]
    for document in documents:
        if document["kind"] == "Deployment":
            spec = document["spec"]
            spec["template"] = installed_chart.fitted(spec["template"], folder, api_port, installed_chart.ALIASES)
    yaml.safe_dump_all(documents, sys.stdout)


if __name__ == "__main__":
    main()
