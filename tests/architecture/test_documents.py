"""Documents and code say the same."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from device_plugin import settings as plugin_settings
from device_plugin.monitor import settings as monitor_settings
from docs import generate, keys
from gpu_sharing.core import error_codes, event_reasons, requests
from hamictl import commands
from scheduler_extender import settings as extender_settings
from webui import settings as webui_settings

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_pages_are_fresh(name: str) -> None:
    """Whoever looks up a code or a flag finds what this version does; `make docs` writes them."""
    assert (generate.REFERENCE / name).read_text() == generate.PAGES[name]()


def test_every_link_between_documents_leads_somewhere() -> None:
    """No reader is sent to a page that is not there."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lab/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_lists_are_written_as_the_site_reads_them() -> None:
    """Less than four spaces under an item end the list; right under an item's paragraph no next item begins."""
    for page in ROOT.glob("docs/**/*.md"):
        text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.M | re.S)
        assert re.findall(r"\n\n {1,3}\S.*|\n {1,3}(?:-|\d+\.) .*", text) == [], page.name
        assert re.findall(r"\n\n {4}[^\n]+(?:\n {4}[^\n]+)*\n\d+\. .*", text) == [], page.name


def test_links_to_other_hosts_are_whole_addresses() -> None:
    """They are not fetched, so their form is all that is held."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((\w+:[^)]*)\)", page.read_text()):
            assert re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[^\s]*)?", target), f"{page.name} links to {target}"


def test_every_annotation_of_the_code_is_in_the_table() -> None:
    """The page of annotations and labels forgets none, and makes up none."""
    sources = "\n".join(
        path.read_text()
        for package in ("gpu_sharing/core", "scheduler_extender", "device_plugin")
        for path in (ROOT / package).rglob("*.py")
    )
    found = set(re.findall(r'"((?:hami\.io|nvidia\.com|scheduling\.x-k8s\.io)/[a-z-]+)"', sources))
    names = requests.ResourceNames()
    no_keys = {*names.managed(), names.priority, "hami.io/vgpu"}  # Resources, and a kind of CDI device.

    table = {one.name for one in (*keys.REQUESTED, *keys.WRITTEN, *keys.OF_NODES, *keys.OF_LEASES)}
    assert found - no_keys == table


def test_every_example_of_hamictl_can_be_typed() -> None:
    """Each is read by the parser of the version that shows it."""
    examples = re.findall(r"^(?:source <\()?(hamictl [^)\n]*)", (generate.REFERENCE / "hamictl.md").read_text(), re.M)

    assert len(examples) > 10
    for example in examples:
        commands.make_parser().parse_args(shlex.split(example)[1:])


def test_every_code_that_is_registered_is_used() -> None:
    """The registry holds no codes that nothing says."""
    sources = "\n".join(
        path.read_text()
        for package in ("gpu_sharing", "scheduler_extender", "device_plugin", "fault_injector", "webui", "hamictl")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "error_codes.py"
    )
    policies = "\n".join(path.read_text() for path in (ROOT / "charts").rglob("*.yaml"))
    names = re.findall(r"^([A-Z_]+) = _register\(", (ROOT / "gpu_sharing/core/error_codes.py").read_text(), re.M)

    assert len(names) == len(error_codes.REGISTRY)
    unused = [name for name in names if f"error_codes.{name}" not in sources]
    assert [name for name in unused if getattr(error_codes, name) not in policies] == []


def test_every_reason_of_an_event_is_used() -> None:
    """The page promises no event that nobody writes, and no other module makes up one of its own."""
    source = (ROOT / "gpu_sharing/core/event_reasons.py").read_text()
    names = re.findall(r"^([A-Z_]+) = _register\(", source, re.M)
    writers = (
        "scheduler_extender/report/decision_events.py",
        "scheduler_extender/report/remediation_events.py",
        "device_plugin/node/node_events.py",
    )
    sources = "\n".join((ROOT / path).read_text() for path in writers)

    assert len(names) == len(event_reasons.REGISTRY)
    assert [name for name in names if f"event_reasons.{name}" not in sources] == []


def test_every_field_of_the_settings_is_explained() -> None:
    """Unit, default and effect stand under each."""
    page = generate.settings_page()

    for module in (extender_settings, plugin_settings, monitor_settings, webui_settings):
        for field in module.Settings.__dataclass_fields__:
            assert f"- `{field}`: " in page, field


def test_no_file_holds_a_path_of_one_machine_or_the_address_of_an_index() -> None:
    """A clone works anywhere."""
    forbidden = re.compile(
        r"--(extra-)?index-url|https?://[^\s\"']*/simple(/|\b)|(?<![\w.])/(home|Users)/(?!kubernetes/)\w+"
    )
    # /home/kubernetes/bin is GKE's folder of the driver.
    for pattern in ("*.md", "*.toml", "Makefile", "requirements/*.txt", "docs/**/*.md", ".ci/*"):
        for path in ROOT.glob(pattern):
            assert not forbidden.search(path.read_text()), path


def test_the_code_of_the_wire_formats_is_fresh(tmp_path: pathlib.Path) -> None:
    """What was generated is what `make protos` generates now from the formats as they stand."""
    recipe = re.search(r"^protos:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    command = (
        recipe[1].replace("$(BIN)", str(pathlib.Path(sys.executable).parent)).replace("_out=quiet:.", "_out=quiet:$OUT")
    )
    command = re.sub(r"(python|grpc_python)_out=\.", r"\1_out=$OUT", command)
    subprocess.run(["sh", "-c", command], cwd=ROOT, env={**os.environ, "OUT": str(tmp_path)}, check=True)

    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == 8
    assert [path for path in made if (tmp_path / path).read_text() != (ROOT / path).read_text()] == []
