"""A server that speaks S3, of the tests' own."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import count
from typing import Any
from urllib.parse import urlparse

import pytest


def served(application: Callable[..., Iterable[bytes]], failures: list[int]) -> Callable[..., Iterable[bytes]]:
    """The WSGI application, with writes one after the other: of two that create an object only if there is none, S3
    has one fail, and this server, which looks and then writes, has both succeed if they look at once.

    Args:
        failures: the statuses of the next answers, which are nothing else; 0 of those that are.
    """
    writing = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if failures and (status := failures.pop(0)):
            start_response(f"{status} No", [])
            return []
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        with writing:
            return list(application(environ, start_response))

    return serve


def read_descriptions_once() -> None:
    """Each file system has a session of its own, which would read megabytes of what the services of AWS are, and look
    through hundreds of directories for them."""
    from botocore.loaders import JSONFileLoader, Loader

    if not isinstance(vars(JSONFileLoader)["load_file"], staticmethod):
        JSONFileLoader.load_file = staticmethod(cache(JSONFileLoader().load_file))
        Loader.list_available_services = staticmethod(cache(Loader().list_available_services))


class S3:
    """A server that speaks S3, in a thread of this process, and what a client needs to know of it."""

    _buckets = count()  # all servers of a process have the same

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        read_descriptions_once()
        self._port = 0
        self.failures: list[int] = []
        self.start()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        # This process is client and server at once, on cores that are busy: it is given more time than an S3 is.
        patience = {"connect_timeout": 30, "read_timeout": 60}
        self.options = {
            "key": "key",
            "secret": "secret",
            "endpoint_url": self.endpoint,
            "client_kwargs": {"verify": False},  # each client would read all certificates, of which this needs none
            "config_kwargs": patience,
        }
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> None:
        """Again where it was, if it has been stopped; what it holds is still there."""
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self.server.start()
        assert self.server._server is not None
        self.server._server.app = served(self.server._server.app, self.failures)  # type: ignore[attr-defined]
        _, self._port = self.server.get_host_and_port()

    def new_url(self) -> str:
        """A prefix in a bucket of its own."""
        from s3fs import S3FileSystem

        url = f"s3://bucket-{next(self._buckets)}/models"
        S3FileSystem(**self.options).mkdir(urlparse(url).netloc)
        return url


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    s3 = S3()
    yield s3
    s3.server.stop()
