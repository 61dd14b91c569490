"""The files of a version that never change, each known by the SHA-256 that the version's record has of it."""

import hashlib
from dataclasses import dataclass
from typing import Self

from app.errors import DictionaryDamaged


@dataclass(frozen=True, slots=True)
class Hashed:
    """What is in a file, and its SHA-256."""

    content: bytes
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        return cls(content, sha256(content))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def require_whole(content: bytes, expected: str, file: str, where: str) -> None:
    """Raises DictionaryDamaged where it is not the file with this SHA-256."""
    if sha256(content) != expected:
        raise DictionaryDamaged(
            f"{file} of {where} is not what was written (its SHA-256 differs); restore it, or use another version"
        )
