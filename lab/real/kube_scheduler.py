"""A real kube-scheduler on any API server, with the configuration that the chart ships."""

import contextlib
import pathlib
import ssl
from collections.abc import Iterator, Sequence

import yaml

from lab.real import build, client, components

CONFIG = pathlib.Path(__file__).parents[2] / "charts/hami/files/kube-scheduler-config.yaml"


class KubeScheduler:
    """One kube-scheduler. Use `running`."""

    def __init__(self, parts: components.Components, name: str = "kube-scheduler") -> None:
        self._parts = parts
        self.name = name
        self._port = components.free_port()
        self._api = client.Api(f"https://127.0.0.1:{self._port}", "", ssl._create_unverified_context())

    def attempts(self) -> dict[str, int]:
        """Return the number of attempts by result (`scheduled`, `unschedulable`, `error`), by its own metrics."""
        found: dict[str, int] = {}
        for line in self._api("GET", "/metrics").splitlines():
            if line.startswith("scheduler_schedule_attempts_total{"):
                result = line.split('result="')[1].split('"')[0]
                found[result] = found.get(result, 0) + int(float(line.split()[-1]))
        return {result: count for result, count in found.items() if count}

    def start(
        self,
        kubeconfig: pathlib.Path,
        extender_url: str | None,
        content_type: str,
        without: Sequence[str] = (),
        feature_gates: str = "",
        lease: str = "",
        within: Sequence[str] = (),
    ) -> None:
        """Start it; see `running`.

        Args:
            kubeconfig: Its kubeconfig.
            extender_url: The URL of the extender, or None.
            content_type: Its content type for the API server.
            without: Verbs of the extender that it must not use.
            feature_gates: Alpha features.
            lease: `namespace/name` of the Lease by which it is elected, with the chart's times; empty: it is alone.
            within: A command that starts it as its child.
        """
        config = yaml.safe_load(CONFIG.read_text())
        config["clientConnection"] |= {"kubeconfig": str(kubeconfig), "contentType": content_type}
        namespace, _, lease_name = lease.partition("/")
        elected = {"leaderElect": True, "resourceNamespace": namespace, "resourceName": lease_name}
        config["leaderElection"] = elected if lease else {"leaderElect": False}
        if extender_url is None:
            del config["extenders"]
        else:
            config["extenders"][0]["urlPrefix"] = extender_url
            for verb in without:
                del config["extenders"][0][verb]
        path = self._parts.folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        self._parts.start(
            self.name,
            "--config",
            path,
            "--secure-port",
            str(self._port),
            "--bind-address",
            "127.0.0.1",
            "--cert-dir",
            self._parts.folder / "certs-scheduler",
            "--authorization-always-allow-paths",
            "/healthz,/readyz,/metrics",
            "--feature-gates",
            feature_gates,
            within=within,
            program="kube-scheduler",
        )
        ready = "/readyz" if build.MINOR > 30 else "/healthz"  # 1.30 has no /readyz yet.
        self._parts.wait(self.name, lambda: self._api("GET", ready) == "ok")

    def stop(self) -> None:
        """Stop the process and wait for its end."""
        self._api.close()
        self._parts.end(self.name)


@contextlib.contextmanager
def running(
    parts: components.Components,
    kubeconfig: pathlib.Path,
    extender_url: str | None,
    content_type: str = "application/vnd.kubernetes.protobuf",
    without: Sequence[str] = (),
    feature_gates: str = "",
) -> Iterator[KubeScheduler]:
    """Run a kube-scheduler until the context ends.

    Args:
        parts: The programs to which it belongs.
        kubeconfig: Its kubeconfig.
        extender_url: The URL of the extender; None runs it without one.
        content_type: Its content type for the API server; its own default if empty.
        without: Verbs of the extender, as its configuration names them, that it must not use.
        feature_gates: Alpha features, as its flag takes them.

    Raises:
        NotReady: It does not start in time.
    """
    scheduler = KubeScheduler(parts)
    try:
        scheduler.start(kubeconfig, extender_url, content_type, without, feature_gates)
        yield scheduler
    finally:
        scheduler.stop()
