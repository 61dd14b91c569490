"""What a browser sends for pages of other sites is refused where no token keeps them out; others are served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.http.tokens import add, new_token
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import WorkerDouble

TOKEN = new_token()
FIT = {"name": "a", "nb_concepts": 1, "data": [[1, 2], [3, 4]]}


def served(settings: Settings) -> TestClient:
    return TestClient(create_app(settings, supervisor=WorkerDouble(settings)), base_url="http://localhost:8000")


@pytest.fixture
def on_loopback(settings: Settings) -> Iterator[TestClient]:
    """As `dictserve serve` has it there, without tokens."""
    with served(settings.model_copy(update={"allowed_hosts": "localhost"})) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8000"},  # another port of this machine
        {"Origin": "http://evil.example"},
        {"Origin": "https://localhost:8000.evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
)
def test_pages_of_other_sites_begin_nothing(on_loopback: TestClient, headers: dict[str, str]) -> None:
    for method, path in (("POST", "/fit"), ("POST", "/encode"), ("PUT", "/dictionaries/a"), ("DELETE", "/jobs/1")):
        answer = on_loopback.request(method, path, json=FIT, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "forbidden"), (method, path)
    assert on_loopback.get("/jobs", headers=headers).json()["jobs"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"},
        {"Sec-Fetch-Site": "none"},  # somebody has typed it
        {"Origin": "http://localhost:8000"},
        {"Origin": "https://dict.example", "X-Forwarded-Host": "dict.example"},
        {"Origin": "http://dict.example", "X-Forwarded-Host": "dict.example, 10.0.0.2"},  # by two proxies
        {"Origin": "http://dict.example", "X-Forwarded-Host": "dict.example:80"},
        {"Origin": "http://localhost", "Host": "localhost:80"},
        {"Origin": "https://127.0.0.1", "Host": "127.0.0.1:443"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
    ],
)
def test_its_own_page_and_other_clients_are_served(on_loopback: TestClient, headers: dict[str, str]) -> None:
    assert on_loopback.post("/fit", json=FIT, headers=headers).status_code == 202


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://dict.example", 202),  # by a proxy that does not hand on its name
        ("https://Dict.example", 202),
        ("https://dict.example:9000", 403),
        ("http://localhost", 403),
        ("http://localhost:9000", 403),
    ],
)
def test_a_page_of_a_name_that_is_allowed_is_its_own(settings: Settings, origin: str, status: int) -> None:
    with served(settings.model_copy(update={"allowed_hosts": "localhost, dict.example:443"})) as client:
        assert client.post("/fit", json=FIT, headers={"Origin": origin}).status_code == status


@pytest.mark.parametrize("names", ["*", "https://dict.example", "dict.example/", "a b", "dict.example, *.example"])
def test_what_is_no_name_stops_the_start(names: str) -> None:
    with pytest.raises(ValidationError, match="is no name of a host"):
        Settings(allowed_hosts=names)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.example"]
)
def test_names_that_others_may_have_registered_lead_nowhere(on_loopback: TestClient, host: str) -> None:
    for path in ("/livez", "/dictionaries", "/v2/health/ready", "/"):
        answer = on_loopback.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "DICTSERVE_ALLOWED_HOSTS" in answer.text


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "a.localhost", "localhost.", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3",
     "dictserve", "host.docker.internal:8000", "box.local", ""],
)  # fmt: skip
def test_addresses_and_local_names_are_its_own(on_loopback: TestClient, host: str) -> None:
    assert on_loopback.get("/livez", headers={"Host": host}).status_code == 200


def test_names_that_are_allowed(settings: Settings) -> None:
    with served(settings.model_copy(update={"allowed_hosts": "dict.example, Other.example"})) as client:
        for host, status in (
            ("dict.example", 200),
            ("other.example:80", 200),
            ("evil.example", 403),
            ("10.0.0.1", 200),
        ):
            assert client.get("/livez", headers={"Host": host}).status_code == status
    with served(settings) as client:
        assert client.get("/livez", headers={"Host": "any.example"}).status_code == 200


def test_with_tokens_a_page_may_be_of_any_site(settings: Settings, tmp_path: Path) -> None:
    """It has none of its own, and a proxy may let it send one."""
    add(tmp_path / "tokens", "writer", ["read", "write"], TOKEN, {})
    with served(settings.model_copy(update={"tokens_file": tmp_path / "tokens"})) as client:
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"}
        assert client.post("/fit", json=FIT, headers=headers).status_code == 401
        told = headers | {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/fit", json=FIT, headers=told).status_code == 202


def test_what_is_read_is_kept_by_no_cache_that_others_share(on_loopback: TestClient) -> None:
    for path in ("/livez", "/dictionaries", "/dictionaries/none", "/jobs", "/metrics", "/v2"):
        headers = on_loopback.get(path).headers
        assert headers.get_list("cache-control") == ["private, no-cache"]
        assert headers["x-content-type-options"] == "nosniff"
    assert on_loopback.get("/page/plotly.js").headers.get_list("cache-control") == ["max-age=86400"]
