"""Who may import whom, and that the check would notice."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_the_core_and_the_fleet_are_pure_and_services_keep_apart() -> None:
    """The decisions can be tested without a cluster, and the node agents' image needs no numpy."""
    command = [str(pathlib.Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_core_runs_without_any_third_party_package() -> None:
    """It is installed where nothing else is."""
    program = (
        "import sys, pkgutil, importlib, gpu_sharing.core as core\n"
        "for module in pkgutil.iter_modules(core.__path__):\n"
        "    importlib.import_module(f'gpu_sharing.core.{module.name}')\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'numpy', 'msgspec', 'orjson', 'kubernetes'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
