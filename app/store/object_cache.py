"""Copies of objects on the local disk, bounded in bytes. Several processes may share them."""

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from app.store.disk import NoRegularFile, read_regular

logger = logging.getLogger("dictserve")


class ObjectCache:
    """What was used longest ago goes first. A copy that cannot be kept is told in the log, and done without."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def has(self, key: str) -> bool:
        return os.path.exists(f"{self._directory}/{key}")

    def get(self, key: str) -> bytes | None:
        path = self._directory / key
        try:
            content = read_regular(path)
            os.utime(path)
        except (OSError, NoRegularFile):
            return None
        return content

    def put(self, key: str, content: bytes) -> None:
        staged = self._directory / f".{secrets.token_hex(8)}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                staged.write_bytes(content)  # not fsynced: whoever reads it can tell whether it is whole
                staged.rename(self._directory / key)
            finally:
                staged.unlink(missing_ok=True)
            self._evict(spared=key)
        except OSError as error:
            logger.warning("no copy of an object can be kept in %s: %s", self._directory, error)

    def drop(self, key: str) -> None:
        with suppress(OSError):
            (self._directory / key).unlink(missing_ok=True)

    def _evict(self, spared: str) -> None:
        found = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process was faster
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, entry.name))
        size = sum(nbytes for _, nbytes, _ in found)
        for _, nbytes, name in sorted(found):
            if size <= self._max_bytes:
                break
            if name != spared:
                self.drop(name)
                size -= nbytes
