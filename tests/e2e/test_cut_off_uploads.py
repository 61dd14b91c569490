"""Uploads that stop half way, over a real socket, leave nothing behind."""

import socket
import time

import numpy as np
import pytest

from app.store import Store
from demo.service import npy
from tests.e2e.conftest import Service


@pytest.mark.parametrize("path", ["/encode?dictionary=a", "/fit?name=a&nb_concepts=2"])
def test_a_client_that_leaves(shared: Service, path: str) -> None:
    body = npy(np.ones((1000, 100), np.float32))
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", shared.port)) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            connection.sendall(body[: len(body) // 2])
    time.sleep(0.5)
    assert shared.client.get("/livez").status_code == 200
    assert list(Store(shared.store).activations.iterdir()) == []
    assert "Traceback" not in shared.log.read_text()
