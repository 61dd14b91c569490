"""The service as a child process on a free port, for whoever wants to talk to a real one for a while."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

START_SECONDS = 180  # the first start compiles the kernels


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def serve_command(port: int, store: Path) -> list[str]:
    return [sys.executable, "-m", "app", "serve", "--port", str(port), "--store", str(store)]


@contextmanager
def running_service(store: Path, log_level: str = "warning") -> Iterator[httpx.Client]:
    """A client of a service that is ready; the service is stopped at the end."""
    port = free_port()
    with subprocess.Popen(serve_command(port, store), env=os.environ | {"DICTSERVE_LOG_LEVEL": log_level}) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                wait_ready(client, process)
                yield client
        finally:
            process.terminate()


def wait_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", seconds: float = START_SECONDS) -> float:
    """How long it took until the service took work.

    Raises:
        RuntimeError: it ended, or the time is up.
    """
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with exit code {process.returncode}")
        try:
            if client.get("/readyz").status_code == 200:
                return time.monotonic() - begun
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.05)  # each look costs both sides a millisecond or two
    raise RuntimeError(f"the service was not ready after {seconds} s")


def npy(array: np.ndarray) -> bytes:
    """An array as the body of a request."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
