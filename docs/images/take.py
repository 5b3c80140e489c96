"""Take the pictures that the documents show, of the WebUI on the demo's cluster: `python -m docs.images.take`.

With a folder, every page is taken there at both widths, to be looked at.
"""

import pathlib
import sys
import tempfile
import time

from playwright import sync_api

from tests.webui import site

HERE = pathlib.Path(__file__).parent
KEPT = ("overview", "nodes", "node", "pods", "pod", "story")
"""Pages that documents show."""
_MEASURED_SECONDS = 40.0
"""The monitors are asked slowly, and the curve needs its second point."""


def take(
    browser: sync_api.Browser, url: str, folder: pathlib.Path, names: tuple[str, ...], *, narrow: bool = False
) -> None:
    """Take pages in light and dark, at the width of a desk or, whole, of both a desk and a phone."""
    for scheme in ("light", "dark"):
        for width in (1440, 390) if narrow else (1440,):
            context = browser.new_context(
                color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": 900}
            )
            page = context.new_page()
            for name in names:
                page.goto(f"{url}{site.PAGES[name]}", wait_until="networkidle")
                size = f"-{width}" if narrow else ""
                page.screenshot(path=folder / f"webui-{name}-{scheme}{size}.png", full_page=narrow)
            context.close()


def main() -> None:
    """Take the pictures that the documents show."""
    with (
        tempfile.TemporaryDirectory() as folder,
        site.running(pathlib.Path(folder)) as running,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        time.sleep(_MEASURED_SECONDS)
        if len(sys.argv) > 1:
            take(browser, running.webui.url, pathlib.Path(sys.argv[1]), tuple(site.PAGES), narrow=True)
        else:
            take(browser, running.webui.url, HERE, KEPT)


if __name__ == "__main__":
    main()
