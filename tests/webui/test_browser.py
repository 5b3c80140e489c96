"""The pages in a real Chromium, on the demo's cluster: content, liveness, focus, accessibility, and nothing foreign."""

import pathlib
import re
from collections.abc import Iterator

import pytest
from playwright import sync_api

from docs.images import take
from gpu_sharing.core import records
from lab import cluster, gpus, kinds, webui_process
from tests import tools
from tests.webui import site as sites

AXE = pathlib.Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"
SCREENS = [(scheme, width) for scheme in ("light", "dark") for width in (1440, 390)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sites.Site]:
    with sites.running(tmp_path_factory.mktemp("webui")) as running:
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

    def shows(self, path: str, *texts: str) -> None:
        """Open a page and wait for texts on it: what was only just measured comes with the next refresh."""
        self.go(path)
        for text in texts:
            self.page.locator("main", has_text=text).wait_for(timeout=60_000)

    def go(self, path: str) -> None:
        self.page.goto(f"{self._url}{path}")

    def check(self, path: str) -> None:
        """By axe, and nothing is wider than the screen."""
        # Through the debugger, which the page's policy does not bind.
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("async () => (await axe.run()).violations.map((v) => v.id + ': ' + v.nodes[0].html)")
        assert found == [], path
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_every_page_is_accessible_and_asks_nobody_else(
    site: sites.Site, browser: sync_api.Browser, scheme: str, width: int
) -> None:
    """In light and dark, on a desk and on a phone."""
    viewer = Viewer(browser, site.webui.url, scheme, width)
    for path in sites.PAGES.values():
        viewer.go(path)
        viewer.check(path)
    viewer.go("/")
    viewer.page.keyboard.press("?")
    viewer.check("the list of keys")
    assert viewer.foreign == []
    assert [line for line in viewer.said if "404" not in line] == []  # The page of an unknown node is one.


def test_the_pictures_that_documents_show_can_be_taken(
    site: sites.Site, browser: sync_api.Browser, tmp_path: pathlib.Path
) -> None:
    """Of the same pages, and those in the documents are there."""
    take.take(browser, site.webui.url, tmp_path, take.KEPT)
    taken = {one.name for one in tmp_path.iterdir() if one.stat().st_size > 5_000}
    assert len(taken) == 2 * len(take.KEPT)
    assert taken == {one.name for one in take.HERE.glob("*.png")}


def test_the_pages_say_what_is_the_case(site: sites.Site, browser: sync_api.Browser) -> None:
    """Who holds what and uses what, which GPU is unhealthy and why, why a pod waits, what happened to one that runs."""
    viewer = Viewer(browser, site.webui.url)
    page = viewer.page

    # Which GPUs they are depends on the order in which the pods, created all at once, got their turn.
    pods = [pod["metadata"].get("annotations") or {} for pod in site.lab.all(kinds.PODS)]
    in_use = {uuid for one in pods for uuid in re.findall(r"GPU-[0-9a-f-]+", one.get(records.ALLOCATED, ""))}
    assert len(in_use) >= 6
    viewer.shows("/", f"{len(in_use)} of 8", "1 unhealthy GPU")
    viewer.shows("/nodes?state=unhealthy", "XID 79: the GPU has fallen off the bus")
    assert "node-01" not in page.inner_text("main")
    viewer.shows("/nodes/node-01", "utilization", "MiB used")
    viewer.shows("/pods", "▲ over")
    viewer.shows(
        "/pods/default/too-big",
        "It requests 1 × 100,000 MiB.",
        "GPU memory insufficient",
        "What to do:",
        "FailedScheduling",
    )
    viewer.shows("/pods/default/share-a", "Successfully assigned pod to node-02")
    assert viewer.said == []


def test_a_new_pod_appears_by_itself_and_focus_stays(site: sites.Site, browser: sync_api.Browser) -> None:
    """Without a reload; what is typed and where one has scrolled stays; the overview tells that it happened."""
    viewer, overview = Viewer(browser, site.webui.url), Viewer(browser, site.webui.url)
    overview.go("/")
    viewer.go("/pods")
    page = viewer.page
    page.fill("input[data-key='/']", "half-typ")
    page.focus("input[data-key='/']")
    page.set_viewport_size({"width": 800, "height": 300})
    page.evaluate("window.marked = true; scrollTo(0, 120)")
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "500"}
    containers = [{"name": "main", "image": "x", "resources": {"limits": limits}}]
    site.lab.create(
        kinds.PODS,
        {
            "metadata": {"name": "brand-new", "namespace": "default"},
            "spec": {"schedulerName": "hami-scheduler", "containers": containers},
        },
    )

    page.wait_for_selector("a:text('default/brand-new')", timeout=60_000)

    assert page.evaluate("[window.marked, scrollY]") == [True, 120]
    assert page.evaluate("document.activeElement.dataset.key") == "/"
    assert page.input_value("input[data-key='/']") == "half-typ"
    overview.page.wait_for_selector(".events a:text('default/brand-new')", timeout=60_000)
    assert viewer.said == overview.said == []


def test_filters_are_in_the_url_and_keys_lead_about(site: sites.Site, browser: sync_api.Browser) -> None:
    """A view can be sent to somebody."""
    viewer = Viewer(browser, site.webui.url)
    viewer.go("/")
    page = viewer.page
    page.keyboard.press("g")
    page.keyboard.press("p")
    page.wait_for_url("**/pods")
    page.keyboard.press("/")
    page.keyboard.type("share")
    page.keyboard.press("Enter")
    page.wait_for_url("**/pods?q=share*")
    assert page.locator("tbody tr").count() == 2
    page.focus("tbody a")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "default/share-b"
    viewer.go("/")
    page.keyboard.press("/")
    page.keyboard.type("node-03")
    page.keyboard.press("Enter")
    page.wait_for_url("**/nodes/node-03")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_commands_are_copied_and_charts_drawn(site: sites.Site, browser: sync_api.Browser) -> None:
    """The curve has its words beside it, and stays when the page refreshes."""
    viewer = Viewer(browser, site.webui.url)
    viewer.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    viewer.go("/nodes/node-01")
    page = viewer.page
    page.click("button:text('Copy') >> nth=0")
    page.wait_for_selector("button:text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "kubectl describe node node-01"
    page.wait_for_selector(".plot canvas")
    page.evaluate("document.querySelector('.plot canvas').marked = true")
    drawn = "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert page.eval_on_selector(".plot canvas", drawn)
    before = page.inner_text(".as-of time")
    page.wait_for_selector(f".as-of time:not(:text('{before}'))", timeout=60_000)
    assert page.evaluate("document.querySelector('.plot canvas').marked") is True
    assert "allocated" in page.inner_text("figcaption [data-words]")
    assert viewer.said == []


def test_a_hidden_tab_asks_rarely_and_at_once_when_it_is_seen_again(
    site: sites.Site, browser: sync_api.Browser
) -> None:
    """A hundred forgotten tabs are no load."""
    viewer = Viewer(browser, site.webui.url)
    viewer.go("/pods")
    page = viewer.page
    asked: list[str] = []
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => window.isHidden }); window.isHidden = true;"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/pods") else None)
    page.wait_for_timeout(7_000)
    assert asked == []
    page.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1_000)
    assert len(asked) >= 1


def test_pages_that_are_not_answered_say_so_and_are_live_again_by_themselves(
    site: sites.Site, browser: sync_api.Browser
) -> None:
    """What is shown is marked old."""
    viewer = Viewer(browser, site.webui.url)
    viewer.go("/pods")
    page = viewer.page
    page.route("**/pods", lambda route: route.abort())
    page.wait_for_selector(".as-of.stale:has-text('these pages have not answered since')", timeout=60_000)
    assert page.locator("tbody tr").count() > 5
    page.unroute("**/pods")
    page.wait_for_selector(".as-of:not(.stale):has-text('live')", timeout=60_000)


def test_a_source_that_goes_down_and_comes_back_is_said(site: sites.Site, browser: sync_api.Browser) -> None:
    """The last data stays, marked old; and it is live again by itself."""
    viewer = Viewer(browser, site.webui.url)
    viewer.go("/")
    page = viewer.page
    page.wait_for_selector(".as-of:has-text('live')")
    site.lab.extender.kill()
    try:
        page.wait_for_selector(".as-of.stale", timeout=60_000)
        assert "GPUs in use" in page.inner_text("main")
    finally:
        site.lab.extender.start()
    page.wait_for_selector(".as-of:not(.stale)", timeout=60_000)
    assert viewer.said == []


def test_one_signs_in_with_a_token_and_out_again(
    site: sites.Site, browser: sync_api.Browser, tmp_path: pathlib.Path
) -> None:
    """And a page that is open in another tab asks for it then."""
    process = webui_process.WebUIProcess(
        tmp_path, f"http://{site.lab.extender.api}", "--auth", "kubernetes", "--kubeconfig", str(site.lab.kubeconfig)
    )
    token = site.lab.server.app.token
    with webui_process.running(process) as webui:
        viewer = Viewer(browser, webui.url)
        page = viewer.page
        viewer.go("/pods?state=pending")
        page.wait_for_url(re.compile(r"/login\?next="))
        viewer.check("/login")
        page.fill("input[name=token]", "wrong")
        page.click("main button:text('Sign in')")
        assert "not a token" in page.inner_text("[role=alert]")
        page.fill("input[name=token]", "one-that-has-the-form-of-a-token")
        page.click("main button:text('Sign in')")
        page.wait_for_selector("[role=alert]:text('does not know that token')")
        page.fill("input[name=token]", token)
        page.click("main button:text('Sign in')")
        page.wait_for_url(re.compile(r"/pods\?state=pending"))
        assert "default/too-big" in page.inner_text("main")
        other = page.context.new_page()
        other.goto(f"{webui.url}/logout")
        other.click("main button")
        other.wait_for_url("**/login")
        page.wait_for_url(re.compile(r"/login\?next="), timeout=60_000)
        assert token not in webui.log_file.read_text()
        assert token not in str(page.context.cookies())


def test_many_nodes_are_a_map_that_leads_to_them(browser: sync_api.Browser, tmp_path: pathlib.Path) -> None:
    """One cell a node; words beside it."""
    nodes = [gpus.gpu_node(f"node-{number:02}", gpus.A100 if number < 20 else gpus.T4, 2) for number in range(30)]
    with cluster.running(nodes) as lab:
        process = webui_process.WebUIProcess(tmp_path, f"http://{lab.extender.api}")
        with webui_process.running(process) as webui:
            for scheme, width in SCREENS:
                viewer = Viewer(browser, webui.url, scheme, width)
                viewer.go("/")
                viewer.page.wait_for_selector("svg.heatmap")
                viewer.check("/")
            viewer.page.click("svg.heatmap a[aria-label^='10 nodes with'] rect")
            viewer.page.wait_for_url("**/nodes?model=*level=0")
            assert "10 found" in viewer.page.inner_text("main")
            assert viewer.said == []
