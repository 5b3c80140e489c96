"""Hunt at random with every property test, in rounds, until the time is over or one fails.

Each round has a seed of its own, which is printed before it and repeats the round: `make search ARGS="--seed N"`.
Whatever else is given goes to pytest: `make search ARGS="--minutes 1 -k records"`.
"""

import argparse
import random
import subprocess
import sys
import time

FOLDERS = ("tests/unit", "tests/component")


def round_command(seed: int, arguments: list[str]) -> list[str]:
    """Return the command that runs every property test once with this seed."""
    wanted = ["-m", "hypothesis", "-q", "--hypothesis-profile", "search", "--hypothesis-seed", str(seed)]
    return [sys.executable, "-m", "pytest", *FOLDERS, *wanted, *arguments]


def main() -> int:
    """Run the rounds. Returns pytest's exit status of the last one."""
    parser = argparse.ArgumentParser(prog="make search", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="no round begins after these (default: 5)")
    parser.add_argument("--seed", type=int, help="one round again, with the seed that it printed")
    options, rest = parser.parse_known_args()
    deadline = time.monotonic() + options.minutes * 60
    while True:
        seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
        again = " ".join(["--seed", str(seed), *rest])
        sys.stdout.write(f"=== seed {seed}; the same again: make search ARGS='{again}'\n")
        sys.stdout.flush()
        status = subprocess.run(round_command(seed, rest)).returncode
        if status or options.seed is not None or time.monotonic() > deadline:
            return status


if __name__ == "__main__":
    sys.exit(main())
