"""Rules, runbooks, dashboards and examples: fresh, and accepted by the tools that read them."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from docs import generate
from gpu_sharing.workload import metric_names
from observability import dashboards, files, rules, targets, workload_alerts, workload_dashboard
from tests import tools
from tests.architecture import test_metrics

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "observability"
RULE_FILES = [str(ROOT / files.RULES), str(ROOT / files.WORKLOAD_RULES)]


@pytest.mark.parametrize("path", sorted(files.made()))
def test_generated_files_are_fresh(path: str) -> None:
    """`make docs` writes them."""
    assert (ROOT / path).read_text() == files.made()[path]


def test_no_runbook_is_left_of_an_alert_that_is_gone() -> None:
    """Nor any dashboard."""
    assert {path.stem for path in (ROOT / "docs/runbooks").iterdir()} == {one.name for one in rules.ALL}
    assert {path.stem for path in (ROOT / files.DASHBOARDS).iterdir()} == {one.name for one in files.BOARDS}


def test_the_page_names_every_process_with_its_job_and_port() -> None:
    """Queries and dashboards of users name the job."""
    assert "\n".join(targets.table()) in (ROOT / "docs/howto/watch-it.md").read_text()


@pytest.mark.slow
def test_every_alert_fires_when_it_should_and_only_then(tmp_path: pathlib.Path) -> None:
    """By promtool, on the rule file as it is shipped."""
    promtool = tools.find("promtool")
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(rules.case_file(*RULE_FILES), sort_keys=False))

    for command in (["check", "rules", *RULE_FILES], ["test", "rules", str(tmp_path / "cases.yaml")]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_case_that_is_wrong_is_found(tmp_path: pathlib.Path) -> None:
    """Else the test above could not fail."""
    promtool = tools.find("promtool")
    cases = rules.case_file(*RULE_FILES)
    for case in cases["tests"]:
        case["input_series"] = [{"series": "nothing", "values": "1"}]
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases, sort_keys=False))

    done = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "cases.yaml")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0


def test_the_examples_are_what_prometheus_and_alertmanager_read(tmp_path: pathlib.Path) -> None:
    """By their own tools; Debian builds Prometheus without discovery in Kubernetes, so that part is left out here."""
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        assert job["honor_labels"] is True
        assert job.pop("kubernetes_sd_configs")[0]["role"] == "pod"
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / files.RULES, tmp_path)
    for command in (
        [tools.find("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        [tools.find("amtool"), "check-config", str(EXAMPLES / "alertmanager.yml")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=GPUUnhealthy", "severity=critical"), "on-call"),
        (("alertname=GPUMemoryUsageHigh", "severity=warning"), "team"),
        (("alertname=GPUFullyAllocated", "severity=none"), "nobody"),
    ],
)
def test_alerts_reach_whom_they_should(labels: tuple[str, ...], receiver: str) -> None:
    """By the routes of the example."""
    command = [
        tools.find("amtool"),
        "config",
        "routes",
        "test",
        "--config.file",
        str(EXAMPLES / "alertmanager.yml"),
        *labels,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == receiver


def test_every_series_that_is_queried_is_exported() -> None:
    """By some process; Prometheus makes `up` itself."""
    exported = {"up"}
    for one in generate.processes().values():
        exported |= {
            f"{family.name}{end}"
            for family in one.registry.collect()
            for end in ("", "_total", "_bucket", "_count", "_sum")
        }
    text = "\n".join(
        [one.expression for one in rules.ALL]
        + [query for board in files.BOARDS for _, query in dashboards.queries(board)]
    )
    exported |= set(test_metrics.cluster_series())
    queried = set(re.findall(r"\bhami_[a-z_]+\b", text))
    assert len(queried) > 40
    assert queried - exported == set()


def test_every_series_of_a_workload_that_is_queried_is_in_the_table_of_its_metrics() -> None:
    """An alert or a panel about a name that no collector exports never shows anything."""
    exported = {
        f"{name}{end}"
        for name, metric in metric_names.METRICS.items()
        for end in (("_bucket", "_count", "_sum") if metric.kind == metric_names.HISTOGRAM else ("",))
    }
    texts = [one.expression for one in workload_alerts.ALERTS]
    texts += [query for _, query in dashboards.queries(workload_dashboard.WORKLOADS)]
    series = r"\b(?:training|learning|batch|data|gpu|inference|model|slice)_[a-z_]+\b"
    queried = {name for text in texts for name in re.findall(series, text)} - {"gpu_id"}

    assert len(queried) > 20
    assert queried - exported == set()
    shown = " ".join(query for _, query in dashboards.queries(workload_dashboard.WORKLOADS))
    assert all(name in shown for one in workload_alerts.ALERTS for name in re.findall(series, one.expression))


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    """And no two panels of a dashboard lie on each other."""
    for board in files.BOARDS:
        made = json.loads((ROOT / files.DASHBOARDS / f"{board.name}.json").read_text())
        places: set[tuple[int, int]] = set()
        for panel in made["panels"]:
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {(x, place["y"]) for x in range(place["x"], place["x"] + place["w"])}
            assert not cells & places
            places |= cells


def test_every_link_of_a_dashboard_leads_somewhere() -> None:
    """A cluster leads to a node, a node to a pod; a variable that the target lacks would show everything instead."""
    boards = {f"hami-{one.name}": one for one in files.BOARDS}
    runbooks = {one.name for one in rules.ALL}
    leads: dict[str, set[str]] = {name: set() for name in boards}
    for uid, board in boards.items():
        for panel in board.panels:
            assert set(panel.alerts) <= runbooks, panel.title
            for name in panel.links:
                link = dashboards.LINKS[name]
                for label in re.findall(r"(?<!\$)\{(\w+)\}", link.url):
                    assert all(label in _labels(query) for query, _ in panel.queries), (panel.title, label)
                target = re.match(r"/d/([\w-]+)\?var-(\w+)=", link.url)
                if target:
                    assert target[2] in boards[target[1]].variables
                    leads[uid].add(target[1])
    assert leads["hami-cluster-overview"] == {"hami-node", "hami-device-health"}
    assert leads["hami-node"] >= {"hami-pods-and-slices"}
    assert dashboards.LINKS["pod page"] in [
        dashboards.LINKS[name] for panel in boards["hami-pods-and-slices"].panels for name in panel.links
    ]


def _labels(query: str) -> set[str]:
    """The labels of a query's result: those that it sums by, else those of its first series."""
    summed = re.search(r"by \(([\w, ]+)\)", query)
    if summed:
        return set(re.findall(r"\w+", summed[1]))
    series = re.search(r"\b(?:hami|training|learning|gpu|inference|slice)_\w+", query)
    assert series
    if series[0] in metric_names.METRICS:
        return {*metric_names.SLICE_LABELS, *metric_names.METRICS[series[0]].labels}
    return {label for one in generate.processes().values() for label in one.labels.get(series[0], ())}


def test_every_dashboard_links_to_the_others_to_the_webui_and_to_runbooks() -> None:
    """By variables, so that the chart can set a site's addresses."""
    for board in files.BOARDS:
        made = dashboards.render(board)
        variables = {one["name"] for one in made["templating"]["list"]}
        text = json.dumps(made)
        assert set(re.findall(r"\$\{(\w+)[}:]", text)) - {"__url_time_range"} <= variables
        assert [link["type"] for link in made["links"]] == ["dashboards", "link", "link"]
        assert set(made["links"][0]["tags"]) <= set(made["tags"])


def test_the_limit_of_an_alert_is_a_number_of_its_expression() -> None:
    """Else the chart's value would change nothing, or the wrong number."""
    for one in rules.ALL:
        if one.limit:
            assert rules.with_limit(one, one.limit) == one.expression
            assert rules.LIMIT in rules.with_limit(one, rules.LIMIT)


def test_the_examples_for_logs_speak_of_fields_that_are_written() -> None:
    """The template's fields, Loki's labels, and the page's table."""
    sources = "\n".join(
        path.read_text()
        for one in ("scheduler_extender", "device_plugin", "gpu_sharing")
        for path in (ROOT / one).rglob("*.py")
    )
    written = set(re.findall(r"[ (](\w+)=", sources)) | set(re.findall(r'"(\w+)"', sources))
    template = json.loads((ROOT / "examples/logs/index-template.json").read_text())
    added = {"@timestamp", "message", "severity", "source", "kubernetes"}  # By the shipper, and of klog's lines.
    fields = set(template["template"]["mappings"]["properties"]) - added
    vector = yaml.safe_load((ROOT / "examples/logs/vector.yaml").read_text())
    labels = {value.strip("{} ") for value in vector["sinks"]["loki"]["labels"].values()} - {"hami"}
    page = (ROOT / "docs/howto/read-the-logs.md").read_text()
    told = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[^|]+) \| (?:date|word|text|number)", page, re.M))))

    assert fields - written == set()
    assert labels <= fields
    assert len(told) > 10
    assert told <= fields
    objects = [json.loads(line) for line in (ROOT / "examples/logs/kibana.ndjson").read_text().splitlines()]
    assert objects[0]["attributes"]["title"] in template["index_patterns"]
    columns = {column.partition(".")[0] for one in objects[1:] for column in one["attributes"]["columns"]}
    assert columns <= fields | added
    assert all(one["references"][0]["id"] == objects[0]["id"] for one in objects[1:])
