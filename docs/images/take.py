"""Take the pictures that the documents show: `python docs/images/take.py URL` of a WebUI on the demo's cluster."""

import pathlib
import sys

from playwright import sync_api

HERE = pathlib.Path(__file__).parent
PAGES = {"overview": "/", "nodes": "/nodes", "pods": "/pods", "pod": "/pods/default/too-big"}


def main(url: str) -> None:
    """Take each page in light and dark."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(
                color_scheme="dark" if scheme == "dark" else "light", viewport={"width": 1440, "height": 900}
            )
            page = context.new_page()
            for name, path in PAGES.items():
                page.goto(f"{url}{path}")
                page.screenshot(path=HERE / f"webui-{name}-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
