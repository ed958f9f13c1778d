"""A real headless Chromium. Without one, browser tests are skipped; SSAH_LENS_NEED_BROWSER=1 makes that an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1280, "height": 900}


@dataclass
class Opened:
    """A page in the browser, and whatever went wrong in it.

    Attributes:
        page: playwright's page.
        errors: uncaught exceptions, and console messages of level error.
        requests: addresses asked for beside the page itself and what it carries.
    """

    page: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def colours(self, selector: str, within: object = None, at_least: int = 1, seconds: float = 15.0) -> int:
        """Different colours of the pixels of an element, as the screen shows them; polls until there are enough."""
        import io
        import time

        import numpy as np
        from PIL import Image

        place = (within or self.page).locator(selector).first
        end = time.monotonic() + seconds
        while True:
            pixels = np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).reshape(-1, 3)
            found = len(np.unique(pixels // 8, axis=0))
            if found >= at_least or time.monotonic() > end:
                return found
            time.sleep(0.2)

    def check(self) -> None:
        """Nothing went wrong and nothing was asked of the network."""
        assert self.errors == []
        assert self.requests == []


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """The browser, started once."""
    needed = os.environ.get("SSAH_LENS_NEED_BROWSER") == "1"
    path = os.environ.get("SSAH_LENS_BROWSER") or next((shutil.which(n) for n in NAMES if shutil.which(n)), None)
    if path is None:
        if needed:
            pytest.fail("SSAH_LENS_NEED_BROWSER=1, and no Chromium is installed (Debian: apt-get install chromium)")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium); browser tests left out")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=[*arguments, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable[..., Opened]]:
    """Opens a file, or HTML as text, in a page of its own."""
    contexts = []

    def opened(what: Path | str, **options) -> Opened:
        context = chromium.new_context(**({"viewport": SIZE} | options))
        contexts.append(context)
        context.set_default_timeout(20_000)
        found = Opened(context.new_page())
        found.page.on("pageerror", lambda e: found.errors.append(str(e)))
        found.page.on("console", lambda m: found.errors.append(m.text) if m.type == "error" else None)
        own = what.as_uri() if isinstance(what, Path) else ""
        harmless = ("data:", "blob:", "about:")
        found.page.on(
            "request",
            lambda r: (
                None if r.url.split("#")[0] == own or r.url.startswith(harmless) else found.requests.append(r.url)
            ),
        )
        if isinstance(what, Path):
            found.page.goto(own)
        else:
            found.page.set_content(what)
        return found

    yield opened
    for context in contexts:
        context.close()
