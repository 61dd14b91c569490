"""The least that a server of this kind does: uvicorn alone, which answers with the body that came."""

from typing import Any

import uvicorn

from benchmarks.service.peers import arguments

HEADERS = [(b"content-type", b"application/octet-stream")]


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body, more = b"", scope["type"] == "http"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    port, _ = arguments()
    uvicorn.run(echo, port=port, log_level="error", access_log=False, lifespan="off", server_header=False)
