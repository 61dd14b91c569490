"""Certificates of the tests' own, made by openssl: an authority, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """Two files in PEM."""

    certificate: Path
    key: Path


def authority(folder: Path, name: str) -> Certificate:
    return _made(folder, name, "-extensions", "v3_ca")


def signed(folder: Path, name: str, by: Certificate, *, alternative: str | None = None) -> Certificate:
    """A certificate of a name, and for the address or host that `alternative` says (``DNS:localhost``)."""
    extension = () if alternative is None else ("-addext", f"subjectAltName={alternative}")
    authority = ("-CA", str(by.certificate), "-CAkey", str(by.key))
    return _made(folder, name, *authority, "-addext", "basicConstraints=critical,CA:FALSE", *extension)


def encrypted(of: Certificate) -> Path:
    """The key, with a password."""
    path = of.key.with_suffix(".encrypted")
    _openssl("pkey", "-in", str(of.key), "-aes256", "-passout", "pass:secret", "-out", str(path))
    return path


def _made(folder: Path, name: str, *options: str) -> Certificate:
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    files = ("-out", str(made.certificate), "-keyout", str(made.key))
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    _openssl("req", "-x509", *kind, "-subj", f"/CN={name}", "-days", "2", *files, *options)
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
