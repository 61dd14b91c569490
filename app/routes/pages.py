"""Pages for browsers: ``/docs``, the OpenAPI document to be read and tried.

A page loads nothing but what the service itself serves, and its headers hold the browser to that. Swagger UI comes
with the package fastapi-offline.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, HTMLResponse

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
DAY = "max-age=86400"

DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>dictserve: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="operations"></div>
<noscript>The document itself is at <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

# validatorUrl: else Swagger UI would show the document to a validator elsewhere
START = """SwaggerUIBundle({url: "openapi.json", dom_id: "#operations", deepLinking: true, validatorUrl: null});
"""

router = APIRouter(include_in_schema=False)


class Page(HTMLResponse):
    """HTML under the headers that every page has."""

    def __init__(self, content: str) -> None:
        super().__init__(content, headers=HEADERS)


@router.get("/docs")
async def docs() -> Response:
    return Page(DOCS)


@router.get("/docs/start.js")
async def start() -> Response:
    return Response(START, headers=HEADERS, media_type="text/javascript")


@router.get("/docs/swagger-ui.css")
def style() -> Response:
    return _asset("swagger-ui.css", "text/css")


@router.get("/docs/swagger-ui-bundle.js")
def script() -> Response:
    return _asset("swagger-ui-bundle.js", "text/javascript")


def _asset(name: str, media_type: str) -> Response:
    path = Path(str(files("fastapi_offline") / "static" / name))
    return FileResponse(path, headers=HEADERS | {"Cache-Control": DAY}, media_type=media_type)
