"""`hamictl`: see, understand and try GPU sharing from a shell. `kubectl hami …` is the same program."""

import argparse
import json
import sys
import urllib.error
import urllib.request

from gpu_sharing.core import error_codes
from hamictl import demo


def main() -> int:
    """Run one command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="hamictl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_arguments(commands.add_parser("demo", help="a whole cluster in one process, and what it does"))
    code = commands.add_parser("explain-code", help="what an error code means and what to do about it")
    code.add_argument("code", metavar="CODE", help="such as SCHED_INSUFFICIENT_GPU_MEMORY")
    explain = commands.add_parser("explain", help="why a pod waits, node by node")
    explain.add_argument("pod", metavar="[NAMESPACE/]POD")
    explain.add_argument(
        "--extender", default="http://127.0.0.1:9446", metavar="URL", help="the read API (default %(default)s)"
    )
    options = parser.parse_args()
    match options.command:
        case "demo":
            return demo.run(options)
        case "explain-code":
            return _explain_code(options.code)
        case _:
            return _explain(options.pod, options.extender)


def _explain_code(name: str) -> int:
    entry = error_codes.REGISTRY.get(error_codes.Code(name.upper()))
    if entry is None:
        print(f"hamictl: no such code: {name}; there are:", *sorted(error_codes.REGISTRY), sep="\n  ", file=sys.stderr)
        return 1
    print(f"{entry.code}\n  {entry.meaning}\n  {entry.remedy}")
    return 0


def _explain(pod: str, extender: str) -> int:
    key = pod if "/" in pod else f"default/{pod}"
    try:
        with urllib.request.urlopen(f"{extender}/api/v1/explain/{key}", timeout=10) as answer:
            found = json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        print(f"hamictl: {refused.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as broken:
        print(f"hamictl: no answer from {extender}: {broken}", file=sys.stderr)
        return 1
    if found["phase"] == "holding":
        print(f"{key} is on node {found['node']}")
        return 0
    print(f"{key} waits: {found['summary'].splitlines()[0]}")
    if found["gates"]:
        print(f"  kube-scheduler is kept from it by the gates {', '.join(found['gates'])}")
    for node in found["nodes"]:
        print(f"  {node['node']}: {node['sentence']}" + (f" [{node['code']}]" if node["code"] else ""))
        if node["advice"]:
            print(f"      {node['advice']}")
        if node["waits_for"]:
            print(f"      it fits once these have ended: {', '.join(node['waits_for'])}")
        if node["evictable"]:
            print(f"      preemption would evict {', '.join(node['evictable'])}")
    if found["nearest"]:
        print(f"nearest: {found['nearest']}")
    print(f"what to do: {found['remedy']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
