"""Debian's Chromium, driven as a person would: what the tests of the page share."""

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

from demo.service import npy
from tests.waiting import PATIENCE_SECONDS

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--in-process-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOWN = "main:not([aria-busy]) h1"  # a view is there once this is
SIZE: ViewportSize = {"width": 1280, "height": 900}
PATIENCE_MS = 1000 * PATIENCE_SECONDS / 2  # two of which are within pytest's own limit
expect.set_options(timeout=PATIENCE_MS)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `make browser` installs it")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """Somebody with the page open.

    Attributes:
        errors: what the console told of, and exceptions.
        elsewhere: requests that left the service.
    """

    url: str
    context: BrowserContext
    page: Page
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", self._noted)

    def _told(self, message: ConsoleMessage) -> None:
        place = message.location["url"]
        # of /livez, which `forget` visits, the browser asks for an icon: the page has its own
        if message.type in ("error", "warning") and not place.endswith("/favicon.ico"):
            self.errors.append(f"{message.text} ({place})")

    def _noted(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", f"blob:{self.url}")):
            self.elsewhere.append(request.url)

    def open(self, view: str = "") -> Page:
        """A view, opened anew, once it is there."""
        if "#" in self.page.url:  # the page is there already, and would but turn to another view
            self.page.goto("about:blank")
        self.page.goto(f"{self.url}/#/{view}")
        self.page.wait_for_selector(SHOWN)
        return self.page

    def forget(self) -> None:
        """What was done, as if somebody else came: to a context of their own a core would go for a second or two."""
        self.page.unroute_all(behavior="ignoreErrors")
        self.context.set_offline(False)
        self.page.goto(f"{self.url}/livez")  # of the service's, whose storage it is, but not the page
        self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        self.page.emulate_media(color_scheme="null", reduced_motion="null")
        self.page.set_viewport_size(SIZE)
        self.errors.clear()
        self.elsewhere.clear()

    def drop(self, zone: Locator, name: str, content: bytes) -> None:
        """Drop a file there."""
        transfer = self.page.evaluate_handle(
            """([name, text]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
                return transfer;
            }""",
            [name, base64.b64encode(content).decode()],
        )
        zone.dispatch_event("dragover", {"dataTransfer": transfer})
        zone.dispatch_event("drop", {"dataTransfer": transfer})

    def hide(self, hidden: bool) -> None:
        """What a tab is told when another one comes before it, or when it is shown again."""
        self.page.evaluate(
            """(value) => {
                Object.defineProperty(document, "hidden", { value, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    def fill_endless(self, name: str) -> Page:
        """The form of a new fit, filled for one that goes on for minutes and is not begun."""
        page = self.open("fit")
        self.drop(page.locator(".drop"), f"{name}.npy", npy(endless()))
        page.get_by_label("Name").fill(name)
        page.get_by_label("Concepts").fill("64")
        page.get_by_text("More parameters").click()
        page.get_by_label("Solver").select_option("mu")
        page.get_by_label("Tolerance").fill("0")
        return page

    def check(self, expected: str | None = None) -> None:
        """Nothing went wrong that was not asked for, and nothing left the service."""
        told = [e for e in self.errors if expected is None or not re.search(expected, e)]
        assert told == [], told
        assert self.elsewhere == [], self.elsewhere


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    context = browser.new_context(viewport=SIZE, **options)
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Visit(url, context, context.new_page())
    finally:
        context.close()


def endless() -> np.ndarray:
    """Activations whose fit by `mu`, with `tol` 0, goes on for minutes."""
    return np.random.default_rng(0).random((2000, 128), dtype=np.float32)


def refused_at_first(page: Page, path: str) -> list[Any]:
    """What is sent there, of which the first is answered with a 503."""
    sent: list[Any] = []

    def answered(route: Route) -> None:
        sent.append(route.request.post_data_json)
        if len(sent) > 1:
            route.continue_()
        else:
            later = {"title": "Not now", "detail": "ask again later"}
            route.fulfill(status=503, json=later, headers={"retry-after": "20"})

    page.route(path, answered)
    return sent


@contextmanager
def received(page: Page) -> Iterator[list[float]]:
    """Bytes of each answer meanwhile, headers and all, as they come over the wire: none from the browser's cache."""
    sizes: list[float] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    session.on("Network.loadingFinished", lambda told: sizes.append(told["encodedDataLength"]))
    yield sizes
    session.detach()


@contextmanager
def slow_line(page: Page, *, bytes_a_second: float) -> Iterator[None]:
    """What the page sends meanwhile goes out no faster."""
    session = page.context.new_cdp_session(page)
    unlimited = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", unlimited | {"uploadThroughput": bytes_a_second})
    yield
    session.send("Network.emulateNetworkConditions", unlimited)
    session.detach()
