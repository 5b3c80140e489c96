"""The pages in a real Chromium, on the demo's cluster: content, liveness, focus, accessibility, and nothing foreign."""

import pathlib
import time
from collections.abc import Iterator

import pytest
from playwright import sync_api

from hamictl import story
from lab import cluster, kinds, webui_process
from tests import tools

AXE = pathlib.Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"
IMAGES = pathlib.Path(__file__).parents[2] / "docs" / "images"
PATHS = ("/", "/nodes", "/nodes/node-01", "/pods", "/pods/default/share-a", "/pods/default/too-big", "/nodes/nobody")
SCREENS = [(scheme, width) for scheme in ("light", "dark") for width in (1440, 390)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    with cluster.running(story.nodes()) as running:
        for chapter in story.chapters():
            for body in chapter.pods:
                running.create(kinds.PODS, body)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            bound = [one for one in running.all(kinds.PODS) if one["spec"].get("nodeName")]
            if len(bound) >= 10:
                break
            time.sleep(0.2)
        yield running


@pytest.fixture(scope="module")
def webui(lab: cluster.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webui_process.WebUIProcess]:
    process = webui_process.WebUIProcess(tmp_path_factory.mktemp("webui"), f"http://{lab.extender.api}")
    with webui_process.running(process) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    chromium = tools.find("chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class Viewer:
    """One tab, and what its console says."""

    def __init__(self, browser: sync_api.Browser, url: str, scheme: str = "light", width: int = 1440) -> None:
        chosen: sync_api.BrowserContext = browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": 900}
        )
        self.page = chosen.new_page()
        self.said: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.foreign.append(request.url) if url not in request.url else None)
        self._url = url

    def go(self, path: str) -> None:
        self.page.goto(f"{self._url}{path}")


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_every_page_is_accessible_and_asks_nobody_else(
    webui: webui_process.WebUIProcess, browser: sync_api.Browser, scheme: str, width: int
) -> None:
    """By axe, in light and dark, on a desk and on a phone; nothing is wider than the screen."""
    viewer = Viewer(browser, webui.url, scheme, width)
    for path in PATHS:
        viewer.go(path)
        # Through the debugger, which the page's policy does not bind.
        viewer.page.evaluate(AXE.read_text())
        found = viewer.page.evaluate(
            "async () => (await axe.run()).violations.map((v) => v.id + ': ' + v.nodes[0].html)"
        )
        assert found == [], path
        assert viewer.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
    assert viewer.foreign == []
    assert [line for line in viewer.said if "404" not in line] == []  # The page of an unknown node is one.


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_pictures_of_the_pages_are_kept(
    webui: webui_process.WebUIProcess, browser: sync_api.Browser, tmp_path: pathlib.Path, scheme: str, width: int
) -> None:
    """They can be taken, and those that documents show exist."""
    viewer = Viewer(browser, webui.url, scheme, width)
    for name, path in (("overview", "/"), ("nodes", "/nodes"), ("pods", "/pods"), ("pod", "/pods/default/too-big")):
        viewer.go(path)
        picture = tmp_path / f"{name}-{scheme}-{width}.png"
        viewer.page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 5_000
        if width == 1440:
            assert (IMAGES / f"webui-{name}-{scheme}.png").exists()


def test_a_new_pod_appears_by_itself_and_focus_stays(
    webui: webui_process.WebUIProcess, browser: sync_api.Browser, lab: cluster.Cluster
) -> None:
    """Without a reload; what is typed and where one has scrolled stays."""
    viewer = Viewer(browser, webui.url)
    viewer.go("/pods")
    page = viewer.page
    page.fill("input[name=q]", "half-typ")
    page.focus("input[name=q]")
    page.evaluate("window.marked = true")
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "500"}
    containers = [{"name": "main", "image": "x", "resources": {"limits": limits}}]
    lab.create(
        kinds.PODS,
        {
            "metadata": {"name": "brand-new", "namespace": "default"},
            "spec": {"schedulerName": "hami-scheduler", "containers": containers},
        },
    )

    page.wait_for_selector("a:text('default/brand-new')", timeout=20_000)

    assert page.evaluate("window.marked") is True
    assert page.evaluate("document.activeElement.name") == "q"
    assert page.input_value("input[name=q]") == "half-typ"
    assert viewer.said == []


def test_filters_are_in_the_url_and_keys_lead_about(
    webui: webui_process.WebUIProcess, browser: sync_api.Browser
) -> None:
    """A view can be sent to somebody."""
    viewer = Viewer(browser, webui.url)
    viewer.go("/")
    page = viewer.page
    page.keyboard.press("g")
    page.keyboard.press("p")
    page.wait_for_url("**/pods")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.type("share")
    page.keyboard.press("Enter")
    page.wait_for_url("**/pods?q=share*")
    assert page.locator("tbody tr").count() == 2
    viewer.go("/pods/default/too-big")
    assert "GPU memory insufficient" in page.inner_text("main")
    assert "What to do:" in page.inner_text("main")


def test_a_source_that_goes_down_and_comes_back_is_said(
    webui: webui_process.WebUIProcess, browser: sync_api.Browser, lab: cluster.Cluster
) -> None:
    """The last data stays, marked old; and it is live again by itself."""
    viewer = Viewer(browser, webui.url)
    viewer.go("/")
    page = viewer.page
    page.wait_for_selector(".as-of:has-text('live')")
    lab.extender.kill()
    try:
        page.wait_for_selector(".as-of.stale", timeout=20_000)
        assert "GPUs in use" in page.inner_text("main")
    finally:
        lab.extender.start()
    page.wait_for_selector(".as-of:not(.stale)", timeout=30_000)
    assert viewer.said == []
