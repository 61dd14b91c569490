"""A bucket: whole objects under keys, in whatever object store fsspec knows, and its errors told as the store's.

What the store of dictionaries needs beyond reading and writing is to create an object that is not there, and to
replace one that is as it was: the two writes of which one of several writers is told that it came too late. S3 has
both; on other systems they hold among the threads of one process, or, on a file system, among all who can lock there.
"""

import errno
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app.errors import StoreAway, StoreFull, StoreUnavailable
from app.reachability import Reachability, give_up_in_time
from app.store.disk import as_store_error, fsync_directory, locked, store_errors
from app.store.object_store import ObjectStore

PRIVATE = ".dictserve"  # a prefix that no dictionary can have
STAGING = f"{PRIVATE}/staging"

# Beside a fast network an answer takes milliseconds; one that takes longer than this is not waited for.
# Parts of large uploads go ten at a time: by default all connections would be theirs, and encodes would wait for one.
S3_CONFIG = {"connect_timeout": 2, "read_timeout": 10, "retries": {"max_attempts": 0}, "max_pool_connections": 100}
S3_ATTEMPTS = 2  # whoever uses S3 is to ask again where it answers so: a few of many requests are
PASSING = {500, 502, 503, 504}
PIECE_BYTES, PIECES_AT_ONCE = 8 * 2**20, 8  # of a download: so much of it is in memory
FULL = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
MISSET = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class Entry:
    """An object as a listing tells of it.

    Attributes:
        tag: another one for another content.
        changed: when, in seconds since the epoch.
    """

    size: int
    tag: str
    changed: float


class Bucket:
    """Objects under a prefix.

    Every method raises StoreAway where the object store does not answer, StoreUnavailable where it refuses, and
    StoreFull where it has no room; what reads or writes a file of the local disk does so for that disk, too.
    """

    _writing = threading.Lock()  # of all buckets: those of one process may be the same

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self.url = url.rstrip("/")
        self._fs, root = url_to_fs(url, skip_instance_cache=True, **options)
        self._root = str(root).rstrip("/")
        self._reachability = Reachability("the object store", self._answers)

    # -- reading ------------------------------------------------------------------------------------------

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """All objects below a prefix (a whole part of keys), by their keys."""
        try:
            with self._asked():
                found = self._find(prefix)
        except FileNotFoundError as error:
            raise StoreUnavailable(f"there is nothing that can be listed at {self.url}") from error
        start = len(self._root) + 1
        return {path[start:]: _entry(info) for path, info in found.items()}

    def _find(self, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = self._fs.find(self._path(prefix) if prefix else self._root, detail=True)
        return found

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError where there is no such object."""
        with self._asked():
            content: bytes = self._fs.cat_file(self._path(key))
        return content

    def entry(self, key: str) -> Entry:
        """An object as it is now. Raises FileNotFoundError where there is no such object."""
        with self._asked():
            return _entry(self._fs.info(self._path(key)))

    def tag(self, key: str) -> str | None:
        """Which content it has now; None where there is no such object."""
        try:
            return self.entry(key).tag
        except FileNotFoundError:
            return None

    def download(self, key: str, path: Path) -> None:
        """Raises FileNotFoundError where there is no such object."""
        entry = self.entry(key)
        with store_errors(), path.open("wb") as file:  # here, where the disk's errors are told from the others
            for start in range(0, entry.size, PIECES_AT_ONCE * PIECE_BYTES):
                file.writelines(self._pieces(key, start, entry.size))
        if self.tag(key) != entry.tag:
            raise _replaced(key)

    def _pieces(self, key: str, start: int, end: int) -> list[bytes]:
        """As much of an object, from ``start`` on, as is read at once."""
        starts = list(range(start, end, PIECE_BYTES))[:PIECES_AT_ONCE]
        ends = [min(start + PIECE_BYTES, end) for start in starts]
        try:
            with self._asked():
                found = self._fs.cat_ranges([self._path(key)] * len(starts), starts, ends, on_error="raise")
        except FileNotFoundError as error:
            raise _replaced(key) from error
        return list(found)

    # -- writing ------------------------------------------------------------------------------------------

    def put(self, key: str, content: bytes) -> None:
        with self._asked():
            self._fs.pipe_file(self._path(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Whether there was no such object, so that now there is this one."""
        try:
            with self._asked(), self._writing:
                self._fs.pipe_file(self._path(key), content, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, key: str, content: bytes, tag: str) -> bool:
        """Whether it was as ``tag`` says, so that now it is this."""
        with self._writing:
            if self.tag(key) != tag:
                return False
            self.put(key, content)
        return True

    def upload(self, path: Path, key: str) -> None:
        with store_errors(), path.open("rb"), self._asked():  # first: what cannot be read is the disk's own fault
            self._send(path, key)

    def _send(self, path: Path, key: str) -> None:
        self._fs.put_file(str(path), self._path(key))

    def copy(self, key: str, to: str) -> None:
        with self._asked():
            self._fs.cp_file(self._path(key), self._path(to))

    def delete(self, key: str) -> None:
        """Remove an object that may be gone already."""
        try:
            with self._asked():
                self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            pass

    # -- errors -------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last asked."""
        return self._reachability.is_up

    def _answers(self) -> None:
        with suppress(FileNotFoundError):
            self._fs.info(self._path(PRIVATE))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _asked(self) -> Iterator[None]:
        self._reachability.require_up()
        try:
            yield
        except (FileNotFoundError, FileExistsError) as error:
            if _code(error) == "NoSuchBucket":
                raise StoreUnavailable(f"there is no bucket for {self.url}") from error
            raise
        except Exception as error:  # of the many kinds that clients and their HTTP libraries raise
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        if isinstance(error, StoreUnavailable):
            return error
        if _code(error) in FULL or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            return StoreFull("the object store has no room left; nothing was written")
        if (refusal := self._refusal(error)) is not None:
            return StoreUnavailable(f"the object store refuses this service: {refusal}")
        away = StoreAway(f"the object store cannot be used: {_code(error) or type(error).__name__}")
        self._reachability.lose(away, error)
        return away

    def _refusal(self, error: Exception) -> str | None:
        """Why to ask again would not help; None where it may."""
        return (_code(error) or "access denied") if isinstance(error, PermissionError) else None


class S3Bucket(Bucket):
    """Writes on conditions are the server's own (If-None-Match, If-Match)."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        from s3fs.core import set_custom_error_handler  # type: ignore[import-untyped]

        set_custom_error_handler(lambda error: _status(error) in PASSING)
        line = {"connector_args": {"socket_factory": lambda told: give_up_in_time(socket.socket(*told[:3]))}}
        config = S3_CONFIG | line | options.get("config_kwargs", {})
        super().__init__(url, {**options, "config_kwargs": config, "use_listings_cache": False})
        self._fs.retries = S3_ATTEMPTS

    def _find(self, prefix: str) -> dict[str, Any]:
        # said as a prefix, an empty answer is not asked about again
        below = f"{prefix}/" if prefix else ""
        bucket, _, inner = self._root.partition("/")
        found: dict[str, Any] = self._fs.find(bucket, prefix=f"{inner}/{below}" if inner else below, detail=True)
        return found

    def create(self, key: str, content: bytes) -> bool:
        return self._put_if(key, content, IfNoneMatch="*")

    def replace(self, key: str, content: bytes, tag: str) -> bool:
        return self._put_if(key, content, IfMatch=tag)

    def _put_if(self, key: str, content: bytes, **condition: str) -> bool:
        with self._asked():
            try:
                self._fs.pipe_file(self._path(key), content, **condition)
            except OSError as error:
                if isinstance(error, FileExistsError | FileNotFoundError) or _code(error) in TAKEN:
                    return False
                raise
        return True

    def _send(self, path: Path, key: str) -> None:
        try:
            super()._send(path, key)
        except OSError as error:
            if error.errno == errno.EIO and not _code(error):  # the server's all have its word, or another number
                raise as_store_error(error) from error
            raise

    def _refusal(self, error: Exception) -> str | None:
        if (status := _status(error)) is not None:
            is_busy = status >= 500 or status == TOO_MANY_REQUESTS or isinstance(error, TimeoutError)
            return None if is_busy else _code(error) or str(status)
        if isinstance(error, ValueError) or type(error).__name__ in MISSET:  # with such settings nothing is sent
            return " ".join(str(error).split())
        return super()._refusal(error)


class LocalBucket(Bucket):
    """A directory, for tests and for whoever has a file system that is shared but keeps no locks over renames."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        super().__init__(url, {**options, "auto_mkdir": True})

    def _find(self, prefix: str) -> dict[str, Any]:
        if not os.path.isdir(self._root):
            raise StoreUnavailable(f"there is no directory {self._root}")
        return super()._find(prefix)

    def put(self, key: str, content: bytes) -> None:
        with self._asked():
            self._place(key, lambda staged: staged.write_bytes(content), os.replace)

    def create(self, key: str, content: bytes) -> bool:
        try:
            with self._asked():
                self._place(key, lambda staged: staged.write_bytes(content), os.link)
        except FileExistsError:
            return False
        return True

    def _send(self, path: Path, key: str) -> None:
        self._place(key, lambda staged: shutil.copyfile(path, staged), os.replace)

    def copy(self, key: str, to: str) -> None:
        with self._asked():
            self._send(Path(self._path(key)), to)

    def replace(self, key: str, content: bytes, tag: str) -> bool:
        Path(self._root, STAGING).mkdir(parents=True, exist_ok=True)
        with locked(Path(self._root, PRIVATE, "lock")):
            return super().replace(key, content, tag)

    def _place(self, key: str, write: Any, put: Any) -> None:
        path, staged = Path(self._path(key)), Path(self._root, STAGING, secrets.token_hex(8))
        for directory in (path.parent, staged.parent):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            write(staged)
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            put(staged, path)
            fsync_directory(path.parent)
        finally:
            staged.unlink(missing_ok=True)


def bucket_of(store: ObjectStore) -> Bucket:
    """Raises StoreUnavailable where nothing is installed that can talk to it."""
    protocol = store.url.partition("://")[0]
    kind = {"s3": S3Bucket, "s3a": S3Bucket, "file": LocalBucket, "local": LocalBucket}.get(protocol, Bucket)
    try:
        return kind(store.url, store.options)
    except ImportError as error:
        needed = "pip install 'dictserve[objects]' has what s3:// needs"
        raise StoreUnavailable(f"{store.url} cannot be used: {error} ({needed})") from error
    except (ValueError, TypeError) as error:
        raise StoreUnavailable(f"{store.url} cannot be used: {error}") from error


def _replaced(key: str) -> StoreUnavailable:
    return StoreUnavailable(f"the object {key} was replaced or removed while it was read")


def _entry(info: dict[str, Any]) -> Entry:
    changed = next((info[key] for key in ("LastModified", "mtime", "created", "updated") if info.get(key)), None)
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed or time.time())
    tag = info.get("ETag") or info.get("etag") or f"{changed}-{info['size']}"
    return Entry(info["size"] or 0, str(tag), seconds)


def _code(error: BaseException) -> str:
    """S3's word for an error; none where it did not answer."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int | None:
    """The HTTP status of S3's answer; None where it did not answer."""
    status: int | None = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _answer(error: BaseException) -> dict[str, Any]:
    for told_by in (error, error.__cause__, error.__context__):
        if isinstance(response := getattr(told_by, "response", None), dict):
            return response
    return {}
