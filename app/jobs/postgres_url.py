"""The URL of the jobs' PostgreSQL, as it is written for libpq, and what the driver is told of it.

What is said of a bad one never repeats what may be its password.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl

import sqlalchemy as sql

MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
FILES = ("sslrootcert", "sslcert", "sslkey")
PARAMETERS = ("sslmode", *FILES, "application_name")
SYSTEM = "system"  # for sslrootcert: the authorities that this system trusts


def driver_told(url: str) -> tuple[sql.URL, dict[str, Any]]:
    """The URL without its parameters, and what `pg8000.connect` is told in their place.

    Raises:
        ValueError: something in it is not known, or a file cannot be read: in one line, and what would be right.
    """
    beyond_password = url.partition("@")[2]
    if "@" in beyond_password:
        raise ValueError("there is more than one @: in a user, a password or a parameter it is written %40")
    if "," in beyond_password.partition("/")[0]:
        raise ValueError("there is more than one host: name one that leads to the one that writes, as a proxy does")
    try:
        parsed = sql.make_url(url)
    except (ValueError, sql.exc.ArgumentError):
        raise ValueError("it is not of the form postgresql://user:password@host:port/name") from None
    if parsed.username is None or parsed.host is None:
        raise ValueError("a user or a host is missing: it is of the form postgresql://user:password@host:port/name")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError(f"there is no port {parsed.port}")
    given = parse_qsl(beyond_password.partition("?")[2], keep_blank_values=True)
    told = dict(given)
    for name, value in given:
        if name not in PARAMETERS:
            raise ValueError(f"unknown parameter {name[:40]!r}: there are {', '.join(PARAMETERS)}")
        if [other for other, _ in given].count(name) > 1 or not value:
            raise ValueError(f"{name} must have one value")
    mode = told.get("sslmode", "prefer")
    if mode not in MODES:
        raise ValueError(f"sslmode={mode[:40]!r} is not one of {', '.join(MODES)}")
    driver: dict[str, Any] = {"ssl_context": _tls(mode, told)}
    if "application_name" in told:
        driver["application_name"] = told["application_name"]
    return parsed.set(drivername="postgresql+pg8000", query={}), driver


def _tls(mode: str, told: Mapping[str, str]) -> ssl.SSLContext | bool | None:
    """As pg8000 takes it: False is none, None whatever the server has."""
    if mode in ("disable", "prefer"):
        for name in FILES:
            if name in told:
                raise ValueError(f"{name} wants an sslmode of require, verify-ca or verify-full beside it")
        return None if mode == "prefer" else False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    root = told.get("sslrootcert")
    if root is not None:  # as with libpq, `require` then verifies, too
        _trust(context, root, mode)
    elif mode == "require":
        context.verify_mode = ssl.CERT_NONE
    else:
        raise ValueError(f"sslmode={mode} wants sslrootcert beside it: a file of authorities' certificates (PEM)")
    if "sslcert" in told or "sslkey" in told:
        _present(context, told.get("sslcert"), told.get("sslkey"))
    return context


def _trust(context: ssl.SSLContext, root: str, mode: str) -> None:
    if root == SYSTEM:
        if mode != "verify-full":  # anybody can have a certificate from one of those
            raise ValueError(f"sslrootcert={SYSTEM} wants sslmode=verify-full beside it")
        context.load_default_certs()
        return
    _require_readable("sslrootcert", root)
    try:
        context.load_verify_locations(root)
    except ssl.SSLError:
        raise ValueError(f"sslrootcert={root} holds no certificates in PEM") from None


def _present(context: ssl.SSLContext, certificate: str | None, key: str | None) -> None:
    if certificate is None or key is None:
        raise ValueError("sslcert and sslkey go together: a certificate of the service's own, and its key")
    _require_readable("sslcert", certificate)
    _require_readable("sslkey", key)

    def encrypted() -> NoReturn:  # asked for a password, OpenSSL would otherwise ask the terminal
        raise ValueError(f"sslkey={key} is encrypted: a key without a password is needed")

    try:
        context.load_cert_chain(certificate, key, encrypted)
    except ssl.SSLError:
        raise ValueError(f"sslcert={certificate} and sslkey={key} are not a certificate and its key in PEM") from None


def _require_readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name}={path} cannot be read: {error.strerror}") from None
