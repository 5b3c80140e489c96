"""An OpenTelemetry Collector that follows log files, built from its Go modules, once, into the cache.

It has the receiver, its operators and the exporter that `examples/logs/otel-collector.yaml` uses; the distribution
`otelcol-contrib` has them too. Takes about two minutes.
"""

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from lab.real import build

VERSION = "v0.165.0"
_CONTRIB_VERSION = "v0.165.1"
_CORE = "go.opentelemetry.io/collector"
_CONTRIB = "github.com/open-telemetry/opentelemetry-collector-contrib"
_MODULES = (
    f"{_CORE}/otelcol@{VERSION}",
    f"{_CORE}/exporter/otlphttpexporter@{VERSION}",
    f"{_CONTRIB}/receiver/filelogreceiver@{_CONTRIB_VERSION}",
)
_MAIN = f"""package main

import (
	"log"

	"{_CONTRIB}/receiver/filelogreceiver"
	"{_CORE}/component"
	"{_CORE}/confmap"
	"{_CORE}/confmap/provider/envprovider"
	"{_CORE}/confmap/provider/fileprovider"
	"{_CORE}/exporter"
	"{_CORE}/exporter/otlphttpexporter"
	"{_CORE}/otelcol"
	"{_CORE}/receiver"
	"{_CORE}/service/telemetry/otelconftelemetry"
)

func factories() (otelcol.Factories, error) {{
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](filelogreceiver.NewFactory())
	if err != nil {{
		return otelcol.Factories{{}}, err
	}}
	exporters, err := otelcol.MakeFactoryMap[exporter.Factory](otlphttpexporter.NewFactory())
	return otelcol.Factories{{
		Receivers: receivers, Exporters: exporters, Telemetry: otelconftelemetry.NewFactory(),
	}}, err
}}

func main() {{
	command := otelcol.NewCommand(otelcol.CollectorSettings{{
		BuildInfo: component.BuildInfo{{Command: "otelcol"}},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{{ResolverSettings: confmap.ResolverSettings{{
			ProviderFactories: []confmap.ProviderFactory{{fileprovider.NewFactory(), envprovider.NewFactory()}},
		}}}},
	}})
	if err := command.Execute(); err != nil {{
		log.Fatal(err)
	}}
}}
"""


def program() -> pathlib.Path:
    """Return the collector, built if it is not there yet.

    Raises:
        BuildFailed: Go is not installed, or the build failed.
    """
    folder = build.cache_folder() / f"otelcol-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with build.only_one(folder):
        build.build_programs(_prepare, {"otelcol": "."}, folder)
    return folder / "otelcol"


def _prepare(module: pathlib.Path) -> None:
    (module / "go.mod").write_text("module lab\n\ngo 1.25\n")
    build.run_go(module, "get", *_MODULES)
    (module / "main.go").write_text(_MAIN)
    build.run_go(module, "mod", "tidy")


@contextlib.contextmanager
def running(
    configs: Sequence[pathlib.Path], log: pathlib.Path, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a collector until the context ends.

    Args:
        configs: Its configurations; a later one overrides an earlier one.
        log: The file of its output.
        environment: Its variables.
    """
    arguments = [part for path in configs for part in ("--config", str(path))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program()), *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=dict(environment)
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
