"""Chromium for the tests of pages: offline, its console and requests watched, its screenshots kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PICTURES = Path(__file__).resolve().parent.parent.parent / "build" / "atlas"

needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).is_file(), reason="there is no Chromium here: apt-get install chromium"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Tab:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser: Any, path: Path, fragment: str = "", width: int = 1280, height: int = 900) -> None:
        self.context = browser.new_context(offline=True, viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.absolute().as_uri() + fragment)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(request.url)

    def ready(self) -> Any:
        """Return Playwright's page once its pictures are read."""
        self.until("typeof FM !== 'undefined' && FM.images !== null && FM.shownOnCard !== undefined")
        return self.page

    def until(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression holds. Playwright's own waiting evaluates texts, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not come true; {self.faults}"
            self.page.wait_for_timeout(30)

    def hover(self, i: int, j: int) -> dict[str, str]:
        """Read what the page shows of the pair at row i, column j of the map."""
        self.page.mouse.move(5, 5)
        self.page.mouse.move(*self.page.evaluate("([i, j]) => FM.map.pixel(i, j)", [i, j]))
        self.page.wait_for_selector("#tip:not([hidden])")
        return read_pair(self.page.locator("#tip .pair"))

    def keep(self, name: str) -> None:
        """Keep a screenshot as build output."""
        folder = Path(os.environ.get("FEATMAP_SCREENSHOTS", PICTURES))
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png")

    def close(self) -> None:
        """Close it; nothing may have gone wrong."""
        self.context.close()
        assert self.faults == []


def read_pair(shown: Any) -> dict[str, str]:
    """Return the names (`one`, `two`) and the texts of the measures of a pair on the page, image of one."""
    rows = shown.locator("tr[data-measure]").all()
    texts = {str(row.get_attribute("data-measure")): str(row.locator("td").first.text_content()) for row in rows}
    return texts | {end: str(shown.get_attribute(f"data-{end}")) for end in ("one", "two")}
