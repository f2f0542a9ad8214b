"""Headless Chromium for tests of pages: every request, error and console message is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

REMEDY = "Chromium is not installed: `apt-get install chromium` (make test does it as root), or `playwright install`."


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, else Playwright's own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        assert found or own.exists(), REMEDY
        # In containers Chromium's own sandbox needs rights that a build does not have; the pages are our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Watched:
    """A page with what it asked the network for and what it complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        found = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return int(found)


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = 1280, dark: bool = False, scripts: bool = True
) -> Iterator[Watched]:
    """Open a file in a fresh context."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
    )
    context.set_default_timeout(60_000)
    watched = Watched(context.new_page())
    watched.page.goto(path.as_uri())
    yield watched
    context.close()
