"""Pages for browsers load nothing from anywhere else."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.http.assets import ENCODINGS
from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "app" / "page"
POLICY = {
    "default-src": "'self'",
    "img-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
LOADING = {"src", "href", "data", "action", "poster", "srcset", "formaction", "background"}


class References(HTMLParser):
    """What a page refers to, and whether it holds code or style of its own, which its policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.found += [value for name, value in attrs if name in LOADING and value is not None]
        if (
            tag == "style"
            or (tag == "script" and "src" not in told)
            or any(n == "style" or n[:2] == "on" for n in told)
        ):
            self.inline.append(tag)


def pages(client: TestClient) -> list[str]:
    """Paths that answer with HTML."""
    paths = [
        path for path in ("/", "/docs", "/redoc", "/docs/oauth2-redirect") if client.get(path).status_code == 200
    ]
    return [path for path in paths if client.get(path).headers["content-type"].startswith("text/html")]


def test_pages_load_from_here_alone(client: TestClient) -> None:
    assert {"/", "/docs"} <= set(pages(client))
    for path in pages(client):
        answer = client.get(path)
        references = References(answer.text)
        assert references.inline == []
        for target in references.found:
            assert not re.match(r"[a-z]+://|//", target), target
            if not target.startswith("data:"):
                assert client.get(target).status_code == 200, target
        policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("path", "media_type", "holds"),
    [
        ("/docs/swagger-ui-bundle.js", "text/javascript", "SwaggerUIBundle"),
        ("/docs/swagger-ui.css", "text/css", ".swagger-ui"),
        ("/page/main.js", "text/javascript", "hashchange"),
        ("/page/style.css", "text/css", "prefers-reduced-motion"),
        ("/page/plotly.js", "text/javascript", "plotly.js v"),
        ("/docs/start.js", "text/javascript", 'url: "openapi.json"'),
    ],
)
def test_what_the_page_loads(client: TestClient, path: str, media_type: str, holds: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert holds in answer.text
    if media_type == "text/css":
        assert not re.findall(r"url\((?![\"']?(?:data:|#))|@import", answer.text)


def test_every_page_is_a_page_of_ours() -> None:
    """FastAPI's own pages are off, and nothing but pages.py makes HTML, assets or not: so each has the headers."""
    app = create_app(Settings())
    assert (app.docs_url, app.redoc_url) == (None, None)
    for source in (ROOT / "app").rglob("*.py"):
        if source.name not in ("pages.py", "assets.py"):
            assert not re.search(r"HTMLResponse|text/html|get_swagger_ui|get_redoc", source.read_text()), source


def test_the_page_is_kept_by_browsers_and_comes_compressed(client: TestClient) -> None:
    for encoding in ("identity", *ENCODINGS):
        answer = client.get("/page/main.js", headers={"Accept-Encoding": encoding})
        assert answer.text == (PAGE / "main.js").read_text()
        assert answer.headers.get("content-encoding", "identity") == encoding
        again = {"Accept-Encoding": encoding, "If-None-Match": answer.headers["etag"]}
        assert client.get("/page/main.js", headers=again).status_code == 304
    refused = client.get("/page/main.js", headers={"Accept-Encoding": ", ".join(f"{name};q=0" for name in ENCODINGS)})
    assert "content-encoding" not in refused.headers
    assert client.get("/page/plotly.js").headers["cache-control"] == "max-age=86400"
    assert client.get("/page/none.js").json()["type"] == "not-found"


def test_the_page_is_of_modules_that_are_there() -> None:
    """Each import names a file and what that exports."""
    for module in PAGE.glob("*.js"):
        for names, file in re.findall(r"^import \{ (.*?) \} from \"\./(.*?)\";$", module.read_text(), re.MULTILINE):
            told = (PAGE / file).read_text()
            for name in names.split(", "):
                assert re.search(rf"^export (?:async )?(?:function|const|class) {name}\b", told, re.MULTILINE), module


def test_the_pages_files_are_installed_with_it() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["app.page"]
    installed = {path.name for pattern in patterns for path in PAGE.glob(pattern)}
    assert installed == {path.name for path in PAGE.iterdir() if path.is_file() and path.suffix != ".py"}
