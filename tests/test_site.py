"""The site is built without a warning and loads nothing from elsewhere, and the made parts of docs/ are fresh."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from app.main import create_app
from app.settings import Settings
from docs.make import factorisation, reference
from tests.app.test_pages import References
from tests.blocks import PAGES, ROOT
from tests.waiting import PATIENCE_SECONDS

PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (command,) = re.findall(r"(?<=/)mkdocs build.*", (ROOT / "Makefile").read_text())
    run = subprocess.run(
        [sys.executable, "-m", *command.split(), "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert "--strict" in command
    assert run.returncode == 0, run.stderr
    assert not re.search(r"warn|error", run.stdout + run.stderr, re.IGNORECASE), run.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in PAGES:
        if page.parent == ROOT / "docs":
            told = (site / page.name).with_suffix(".html").read_text()
            assert "<h1" in told
            assert "```" not in told, f"{page.name}: a block that is not rendered"


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.sub(r"<a [^>]*>", "", text)  # where one may go, by a click
        assert len(References(loaded).found) > 3
        for target in References(loaded).found:
            if not target.startswith("data:"):
                assert not re.match(r"[a-z]+:|//", target), f"{page.name}: {target}"
                folder = site if target.startswith("/") else page.parent
                assert (folder / target.partition("?")[0].lstrip("/")).exists(), f"{page.name}: {target}"
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", text)
        assert 'class="mermaid"' not in text  # which the theme would fetch from elsewhere
    for sheet in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_the_reference_is_that_of_the_openapi_document() -> None:
    told = reference.PAGE.read_text()
    assert told == reference.page(), "run `python -m docs.make`"
    document = create_app(Settings()).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            section = told.partition(f"\n### {method.upper()} {path}\n")[2].partition("\n### ")[0]
            for parameter in operation.get("parameters", ()):
                assert f"| `{parameter['name']}` | {parameter['in']} |" in section
            body = operation.get("requestBody", {}).get("content", {})
            for field in body.get("application/json", {}).get("schema", {}).get("properties", {}):
                assert f"| `{field}` |" in section
            assert all(status in section for status in operation["responses"])
    for name, schema in document["components"]["schemas"].items():
        section = told.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert all(f"| `{field}` |" in section for field in schema.get("properties", ()))


@pytest.mark.slow
def test_the_picture_of_a_factorisation_is_fresh() -> None:
    """Other processors round otherwise: shades may differ a little."""
    assert shades(factorisation.PICTURE.read_text()) == pytest.approx(shades(factorisation.picture()), abs=0.1)


def shades(picture: str) -> list[float]:
    """Of every cell, row by row and grid by grid; 0 where it is empty. And the error that is told."""
    cells = {
        (float(x), float(y)): float(shade)
        for x, y, shade in re.findall(r'class="cell" x="([^"]+)" y="([^"]+)".*fill-opacity="([^"]+)"', picture)
    }
    assert len(cells) > 200
    grids = re.findall(r'class="grid" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"', picture)
    assert len(grids) == 3
    (error,) = re.findall(r"relative error .* is (0\.\d+)\.", picture)
    side = factorisation.CELL
    return [
        cells.get((x + i * side, y + j * side), 0.0)
        for x, y, width, height in (map(float, grid) for grid in grids)
        for j in range(int(height // side))
        for i in range(int(width // side))
    ] + [float(error)]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_told_in_words_and_seen_in_the_dark(picture: Path) -> None:
    root = ET.parse(picture).getroot()  # noqa: S314 (our own)
    text = picture.read_text()
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text  # type: ignore[union-attr]
    assert len(root.find(f"{space}desc").text or "") > 40  # type: ignore[union-attr]
    assert "prefers-color-scheme: dark" in text
    assert 'class="ground"' in text
    alts = [re.search(rf"!\[([^\]]{{20,}})\]\(pictures/{picture.name}\)", page.read_text()) for page in PAGES]
    assert any(alts), "no page shows it, or without words for those who do not see it"
    for name in re.findall(r"\b(?:\w+/)*\w+\.py\b", text):
        assert [path for path in (ROOT / "app").rglob("*.py") if path.as_posix().endswith(f"/{name}")], name
