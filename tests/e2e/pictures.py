"""The pictures of docs/page.md, taken from the real thing: ``make pictures``."""

import re
import tempfile
from pathlib import Path

import httpx
import numpy as np
from playwright.sync_api import Browser, Page
from sklearn.datasets import load_digits

from demo.digits import split_digits
from demo.service import npy, running_service
from tests.e2e.browser import Visit, chromium, visiting

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
LABELS = {0: "slanted one", 3: "upper loop", 7: "left stroke", 12: "foot"}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, running_service(Path(directory) / "models") as client:
        _fill(client)
        with chromium() as browser:
            _take(browser, str(client.base_url))


def _fill(client: httpx.Client) -> None:
    activations, _ = split_digits()
    images = load_digits().data.astype(np.float32)
    for name, k, seed, A in (
        ("layer1", 16, 0, activations),
        ("digits", 64, 0, activations),
        ("digits", 64, 1, activations),
        ("images", 25, 0, images),
    ):
        parameters = {"name": name, "nb_concepts": k, "seed": seed}
        client.post("/fit", params=parameters, content=npy(A), headers={"Prefer": "wait=120"}).raise_for_status()
    client.patch("/dictionaries/digits", json={"concept_labels": LABELS}).raise_for_status()


def _take(browser: Browser, url: str) -> None:
    with visiting(browser, url) as visit:
        _save(visit.open(), "dictionaries")
        page = visit.open("dictionaries/digits@2")
        _drawn(page)
        page.get_by_role("button", name="Draw the map").click()
        page.get_by_role("img", name=re.compile("Cosines of")).wait_for()
        page.evaluate("scrollTo(0, 0)")
        _save(page, "dictionary")
        _save(visit.open("dictionaries/images/concepts/4"), "concept")
        page = visit.open("compare/digits@1/digits@2")
        page.get_by_text("64 matches").wait_for()
        _save(page, "compare")
        _try(visit)
        _fit(visit)
    with visiting(browser, url, color_scheme="dark") as visit:
        page = visit.open("dictionaries/digits@2")
        _drawn(page)
        _save(page, "dictionary-dark")


def _try(visit: Visit) -> None:
    page = visit.open("try/images")
    page.get_by_label("Numbers, as JSON").fill(", ".join(f"{value:g}" for value in load_digits().data[3]))
    page.get_by_role("button", name="Encode", exact=True).click()
    page.get_by_role("img", name="Its reconstruction", exact=True).wait_for()
    page.get_by_role("slider").first.focus()
    page.mouse.wheel(0, 420)
    page.wait_for_timeout(300)
    _save(page, "try")


def _fit(visit: Visit) -> None:
    page = visit.fill_endless("layer4")
    page.get_by_role("button", name="Start the fit").click()
    page.get_by_text(re.compile("running: iteration [1-9]\\d")).wait_for()
    _drawn(page)
    page.wait_for_timeout(1500)
    _save(page, "fit")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled").wait_for()


def _drawn(page: Page) -> None:
    page.locator(".chart .main-svg").first.wait_for()
    page.wait_for_timeout(500)


def _save(page: Page, name: str) -> None:
    """Small enough for docs."""
    page.screenshot(path=FOLDER / f"{name}.jpg", type="jpeg", quality=72)


if __name__ == "__main__":
    main()
