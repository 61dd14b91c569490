"""Answers that are errors, as exceptions."""

import sys
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from app.client import (
    AsyncClient,
    Client,
    DictserveError,
    InvalidRequest,
    NotFound,
    Unavailable,
    UnknownDictionary,
    Unreachable,
    errors,
)
from app.errors import INTERNAL, KINDS
from app.http.problems import HTTP_KINDS
from demo.service import free_port, npy


@pytest.mark.parametrize("kind", [*KINDS.values(), *HTTP_KINDS.values(), INTERNAL], ids=lambda kind: kind.slug)
def test_every_problem_of_the_service_has_a_class_of_its_name(kind) -> None:  # type: ignore[no-untyped-def]
    problem = f'{{"type": "{kind.slug}", "title": "", "status": {kind.status}, "detail": "what is wrong"}}'
    error = errors.error_of(kind.status, problem.encode())
    assert type(error).slug == error.type == kind.slug
    assert (str(error), error.status) == ("what is wrong", kind.status)
    group = {404: NotFound, 422: InvalidRequest, 503: Unavailable}.get(kind.status, DictserveError)
    assert isinstance(error, group)


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (404, errors.UnreadableAnswer),
        *((status, Unavailable) for status in (429, 502, 503, 504)),
        (418, DictserveError),
        (301, DictserveError),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b"[]", b'{"detail": 3}', b"\xff\xfe", b"null"])
def test_what_is_no_problem_document_is_told_by_its_status(status: int, cls: type, body: bytes) -> None:
    error = errors.error_of(status, body)
    assert type(error) is cls
    assert error.status == status
    assert str(status) in str(error)


def test_where_a_redirect_points_to_is_told() -> None:
    headers = {"location": "https://there.example/"}
    transport = httpx.MockTransport(lambda _: httpx.Response(308, headers=headers))
    with (
        Client(transport=transport) as client,
        pytest.raises(DictserveError, match=r"308: .*https://there\.example/"),
    ):
        client.dictionaries()


def test_a_type_of_a_newer_service_is_told_by_its_status() -> None:
    error = errors.error_of(404, b'{"type": "unknown-planet", "detail": "no such planet"}')
    assert (type(error), error.type, str(error)) == (NotFound, "unknown-planet", "no such planet")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for cls in errors._BY_SLUG.values():
        assert f"─ {cls.__name__}" in errors.__doc__


def test_fields_that_are_wrong_are_told() -> None:
    problem = {"type": "invalid-fields", "detail": "d", "errors": [{"loc": ["data", 3, 5], "msg": "m"}]}
    transport = httpx.MockTransport(lambda _: httpx.Response(422, json=problem))
    with Client(transport=transport) as client, pytest.raises(InvalidRequest) as caught:
        client.encode([1.0], "x")
    assert caught.value.errors == problem["errors"]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"\x93NUMPY\x01\x00\xff\xff{}", b"\x93NUMPY\x01\x00\x10\x00" + b"x" * 16]
)
def test_an_answer_that_is_no_array_is_an_error_of_the_client(body: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with Client(transport=transport) as client, pytest.raises(errors.UnreadableAnswer):
        client.decode([1.0], "x")


def test_a_page_in_place_of_json_is_an_error_of_the_client() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b"<html>"))
    with Client(transport=transport) as client:
        for call in (client.dictionaries, client.jobs, lambda: client.dictionary("x")):
            with pytest.raises(errors.UnreadableAnswer):
                call()


@pytest.mark.parametrize("body", [b"{}", b'{"status": "ok"}', b'{"jobs": [{}], "dictionaries": [{}]}'])
def test_json_of_something_else_is_an_error_of_the_client(body: bytes) -> None:
    """As another service's at that URL: it was a KeyError, of the call or of what was made of the answer later."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with Client(transport=transport) as client:
        calls: list[Callable[[], object]] = [
            client.dictionaries,
            client.jobs,
            lambda: client.dictionary("x"),
            lambda: client.job("1"),
            lambda: client.fit([[1.0]], nb_concepts=1, name="x"),
            lambda: client.import_dictionary("x", [[1.0]]),
            lambda: client.label("x", {"a": "b"}),
        ]
        for call in calls:
            with pytest.raises(errors.UnreadableAnswer):
                call()


@pytest.mark.parametrize(
    "headers",
    [{}, {"dictserve-dictionary": "x", "dictserve-version": "one", "dictserve-converged": "true"}],
    ids=["none", "no number"],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_codes_that_are_not_told_of_are_an_error_of_the_client(headers: dict[str, str], sparse: bool) -> None:
    body = save({"codes": np.ones((1, 1), np.float32)}) if sparse else npy(np.ones((1, 1), np.float32))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body, headers=headers))
    with Client(transport=transport) as client, pytest.raises(errors.UnreadableAnswer):
        client.encode([[1.0]], "x", sparse=sparse)


@pytest.mark.parametrize(
    "url",
    [
        "foo",
        "ftp://x",
        "http://",
        "http://x:y",
        "//x",
        "http://.example",
        f"http://{'a' * 64}.example",
        "http://xn--a.example",
        "http://x\udcff",
        "http://x/?a=b",
        "http://x/#a",
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        Client(url)


def test_unknown_dictionaries_can_be_caught_by_name() -> None:
    assert issubclass(UnknownDictionary, NotFound)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_names_nothing_is_refused_before_it_becomes_another_path(name: str) -> None:
    def sent(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.method} {request.url} was sent")

    with Client(transport=httpx.MockTransport(sent)) as client:
        asks: list[Callable[[], object]] = [
            lambda: client.dictionary(name),
            lambda: client.remove(name),
            lambda: client.import_dictionary(name, np.ones((1, 2))),
            lambda: client.compare("a", name),
            lambda: client.job(name),
        ]
        for ask in asks:
            with pytest.raises(InvalidRequest, match=f"{name!r} names neither a dictionary nor a job"):
                ask()


def test_a_proxy_that_cannot_be_used_is_told_when_the_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # what httpx needs for such a proxy
    for name, value in (
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTP_PROXY", "http://h:notaport"),
        ("HTTP_PROXY", "foo://h"),
        ("NO_PROXY", "localhost,fe80::/10"),
    ):
        for client in (Client, AsyncClient):
            with monkeypatch.context() as told:
                told.setenv(name, value)
                with pytest.raises(ValueError, match=r"HTTP_PROXY.* cannot be used: "):
                    client("http://localhost:8000")


def test_certificates_that_are_not_there_are_told_when_the_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/absent.pem")
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"SSL_CERT_FILE.* cannot be read"):
            client("http://localhost:8000")


def test_no_error_tells_a_password() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = Client("http://user:secret@127.0.0.1:8189", retries=0, transport=httpx.MockTransport(refuse))
    with client, pytest.raises(Unreachable) as told:
        client.dictionaries()
    assert "secret" not in str(told.value)
    assert "http://127.0.0.1:8189" in str(told.value)


def test_a_token_is_not_dropped_for_a_password() -> None:
    with pytest.raises(ValueError, match="one of the two") as caught:
        Client("http://user:hidden@x", token="ds_a")  # noqa: S106 - none
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("name", ["x\udcff", "x" * 70_000])
def test_names_that_no_url_holds_are_refused(name: str) -> None:
    """They were httpx's errors, or Python's."""
    refused = httpx.MockTransport(lambda _: pytest.fail("it was sent"))
    with Client(transport=refused) as client:
        for call in (
            lambda: client.dictionary(name),
            lambda: client.encode([1.0], name),
            lambda: client.decode([1.0], name),
            lambda: client.fit([1.0], nb_concepts=1, name=name),
            lambda: client.jobs(name=name),
        ):
            with pytest.raises(InvalidRequest, match=r"is not UTF-8|too long"):
                call()


def test_labels_that_are_no_text_are_refused() -> None:
    with Client() as client, pytest.raises(InvalidRequest, match="is not UTF-8"):
        client.label("x", {"key": "\udcff"})


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told as the service that refuses the connection."""
    monkeypatch.setenv("http_proxy", f"user:hidden@127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "near.example")
    with Client("http://far.example", retries=0) as client, pytest.raises(Unreachable) as caught:
        client.dictionaries()
    assert "http://far.example through the proxy http://127.0.0.1:" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert Client("http://near.example")._url == "http://near.example"
