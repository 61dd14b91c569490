"""The parameters of a PostgreSQL's URL: what is refused and how it is told, and TLS with a real server."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql
from pydantic import ValidationError

from app.errors import JobsUnavailable
from app.jobs.database import Database
from app.jobs.postgres_url import driver_told
from app.settings import Settings
from tests.certificates import Certificate, authority, encrypted, signed
from tests.postgres import USER, Cluster, running_cluster
from tests.waiting import PATIENCE_SECONDS

AT = "postgresql://dictserve:s3cret@database/jobs"
SECRET = "s3cret"  # noqa: S105


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not on this machine")
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Certificate:
    return authority(folder, "ca")


@pytest.fixture(scope="module")
def ours(folder: Path, ca: Certificate) -> Certificate:
    return signed(folder, "certified", by=ca)


@pytest.fixture(scope="module")
def secure(folder: Path, ca: Certificate) -> Iterator[Cluster]:
    """A server with a certificate for ``localhost``, where the user ``certified`` needs one of its own."""
    server = signed(folder, "server", by=ca, alternative="DNS:localhost")
    files = (server.certificate, server.key, ca.certificate)
    options = ("ssl_cert_file", "ssl_key_file", "ssl_ca_file")
    told = {option: f"../{path.name}" for option, path in zip(options, files, strict=True)}
    access = ["hostssl all certified 127.0.0.1/32 cert"]
    try:
        with running_cluster(access=access, files=files, ssl="on", **told) as cluster:
            yield cluster
    except FileNotFoundError as error:
        pytest.skip(str(error))


def asked(url: str, question: str) -> object:
    """What the database at a URL answers to a question."""
    database = Database(url)
    try:
        database.open()
        with database.transaction() as connection:
            return connection.execute(sql.text(question)).scalar_one()
    finally:
        database.close()


def is_encrypted(url: str) -> object:
    return asked(url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


def by_name(url: str) -> str:
    """The same server under the name that its certificate has."""
    return url.replace("127.0.0.1", "localhost")


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"{AT}?sslmod=require", "unknown parameter 'sslmod': there are sslmode, sslrootcert, sslcert, sslkey"),
        (f"{AT}?sslmode=on", "sslmode='on' is not one of disable, prefer, require, verify-ca, verify-full"),
        (f"{AT}?sslmode=allow", "sslmode='allow' is not one of"),
        (f"{AT}?sslmode", "sslmode must have one value"),
        (f"{AT}?sslmode=require&sslmode=prefer", "sslmode must have one value"),
        (f"{AT}?sslmode=verify-full", "sslmode=verify-full wants sslrootcert beside it"),
        (f"{AT}?sslmode=verify-full&sslrootcert=/none/ca.pem", "/none/ca.pem cannot be read: No such file"),
        (f"{AT}?sslmode=verify-full&sslrootcert={__file__}", "holds no certificates in PEM"),
        (f"{AT}?sslmode=verify-ca&sslrootcert=system", "sslrootcert=system wants sslmode=verify-full"),
        (f"{AT}?sslrootcert={__file__}", "sslrootcert wants an sslmode of require, verify-ca or verify-full"),
        (f"{AT}?sslmode=require&sslcert={__file__}", "sslcert and sslkey go together"),
        (f"{AT}?sslmode=require&sslcert={__file__}&sslkey=/none", "sslkey=/none cannot be read"),
        (f"{AT}?sslmode=require&sslcert={__file__}&sslkey={__file__}", "are not a certificate and its key"),
        ("postgresql://dictserve:s3cret@database:port/jobs", "not of the form"),
        ("postgresql://dictserve:x@s3cret@database/jobs", "more than one @"),
        ("postgresql://dictserve:s3cret@one,other/jobs", "more than one host: name one"),
        ("postgresql://dictserve:s3cret@one:5432,other:5432/jobs", "more than one host: name one"),
        ("postgresql://dictserve:s3cret@database:99999/jobs", "there is no port 99999"),
        ("postgresql://dictserve:s3cret@database:0/jobs", "there is no port 0"),
        ("postgresql:///jobs", "a user or a host is missing"),
    ],
)
def test_what_is_wrong_is_told_without_the_password(url: str, told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(database_url=url)
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_key_with_a_password_is_refused(ours: Certificate) -> None:
    """And nobody is asked for one at the terminal."""
    with pytest.raises(ValueError, match="is encrypted: a key without a password is needed"):
        driver_told(f"{AT}?sslmode=require&sslcert={ours.certificate}&sslkey={encrypted(ours)}")


def test_a_start_says_what_is_wrong_in_a_line() -> None:
    url = f"{AT}?sslmode=verify-full&sslrootcert=/none/ca.pem"
    run = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", "0"],
        env=os.environ | {"DICTSERVE_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("dictserve: setting database_url: ")
    assert line.endswith("sslrootcert=/none/ca.pem cannot be read: No such file or directory")


# -- a server with TLS ------------------------------------------------------------------------------------


def test_modes_with_a_server_that_has_tls(secure: Cluster, ca: Certificate) -> None:
    url = secure.new_database()
    assert is_encrypted(url)
    assert is_encrypted(f"{url}?sslmode=prefer")
    assert not is_encrypted(f"{url}?sslmode=disable")
    assert is_encrypted(f"{url}?sslmode=require")
    for mode in ("require", "verify-ca"):
        assert is_encrypted(f"{url}?sslmode={mode}&sslrootcert={ca.certificate}")
    assert is_encrypted(f"{by_name(url)}?sslmode=verify-full&sslrootcert={ca.certificate}")


def test_another_host_name_is_refused(secure: Cluster, ca: Certificate) -> None:
    url = secure.new_database()
    with pytest.raises(JobsUnavailable, match=r"certificate .* is not trusted: .*mismatch.*127\.0\.0\.1"):
        is_encrypted(f"{url}?sslmode=verify-full&sslrootcert={ca.certificate}")


def test_another_authority_is_refused(secure: Cluster, folder: Path) -> None:
    other = authority(folder, "other-ca").certificate
    url = by_name(secure.new_database())
    for told in (
        f"verify-full&sslrootcert={other}",
        f"require&sslrootcert={other}",
        "verify-full&sslrootcert=system",
    ):
        with pytest.raises(JobsUnavailable, match=r"certificate .* is not trusted"):
            is_encrypted(f"{url}?sslmode={told}")


def test_a_certificate_of_the_services_own(secure: Cluster, ca: Certificate, ours: Certificate) -> None:
    asked(secure.new_database(), "SELECT 1")
    with secure.connected() as connection:
        connection.cursor().execute("CREATE ROLE certified LOGIN SUPERUSER")
        connection.commit()
    url = by_name(secure.new_database()).replace(f"{USER}@", "certified@")
    trusted = f"{url}?sslmode=verify-full&sslrootcert={ca.certificate}"
    with pytest.raises(JobsUnavailable, match="client certificate"):
        asked(trusted, "SELECT 1")
    mine = f"{trusted}&sslcert={ours.certificate}&sslkey={ours.key}&application_name=vision"
    assert asked(mine, "SELECT current_user || ' ' || current_setting('application_name')") == "certified vision"


def test_a_server_without_tls(postgres: Cluster) -> None:
    url = postgres.new_database()
    assert not is_encrypted(url)
    with pytest.raises(JobsUnavailable, match="has no TLS"):
        is_encrypted(f"{url}?sslmode=require")
