"""Pages for browsers: ``/``, where people look and try, and ``/docs``, the OpenAPI document to be read and tried.

A page loads nothing but what the service itself serves, and its headers hold the browser to that. Swagger UI comes
with the package fastapi-offline, the charts with the package plotly.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from app.http.assets import DAY, Asset, assets_in

# Styles need no exception, though Plotly writes some: the page gives it a sheet to write them into, and what it would
# set as attributes (of heat maps) the page draws itself.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

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

ASSETS = {
    "/": Asset("app.page", "index.html"),
    **{f"/page/{name}": asset for name, asset in assets_in("app.page").items()},
    "/page/plotly.js": Asset("plotly", "package_data/plotly.min.js", DAY),
    "/docs/swagger-ui.css": Asset("fastapi_offline", "static/swagger-ui.css", DAY),
    "/docs/swagger-ui-bundle.js": Asset("fastapi_offline", "static/swagger-ui-bundle.js", DAY),
}

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


def _serve(path: str, asset: Asset) -> None:
    @router.get(path)
    def answer(request: Request) -> Response:
        return asset.answer(request, HEADERS)


for path, asset in ASSETS.items():
    _serve(path, asset)
