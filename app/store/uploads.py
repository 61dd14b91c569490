"""The activations of a fit, on the store's disk from the moment they arrive until their job has ended."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from app.errors import DataChanged, StoreFull
from app.formats import npy_format
from app.store.disk import fsync_directory, store_errors
from app.store.shared_files import GRACE_SECONDS, SharedFiles
from app.store.workplace import Workplace, owner_of
from app.threads import Threads

logger = logging.getLogger("dictserve")

ALIGNMENT = 64  # of the array in its file, so that it can be mapped and computed with as it lies
HASH_ROWS_BYTES = 16 * 1024 * 1024
MOVED_AT_ONCE = 8  # each by ten connections at most, so that encodes have some: `S3_CONFIG` of app.store.bucket


@dataclass(frozen=True)
class Staged:
    """Activations in a file, float32 and C order, durable."""

    file: str
    data_offset: int
    rows: int
    n_features: int
    sha256: str

    def as_record(self) -> dict[str, Any]:
        return vars(self).copy()

    @property
    def identity(self) -> list[Any]:
        """What tells two requests apart."""
        return [self.sha256, self.rows]


class Uploads:
    """Files under the store's private directory, named for the process that made them.

    With ``shared`` files they are objects, too, from before their request is answered: others may take the job up.
    That may take a network long, so that requests have it done in ``threads`` of its own.
    """

    def __init__(self, workplace: Workplace, shared: SharedFiles | None = None) -> None:
        self._workplace = workplace
        self._shared = shared
        self.threads = Threads("activations", MOVED_AT_ONCE)
        self._of_jobs: set[str] = set()  # files whose job is on record: once it has ended they can go

    def new_path(self) -> Path:
        return self._workplace.activations / f"{self._workplace.owned_name()}.npy"

    def path(self, file: str) -> Path:
        return self._workplace.activations / file

    def stage(self, A: np.ndarray, upload: Path) -> Staged:
        """Make activations durable. ``upload`` is kept as it is where it holds just them, else written anew.

        Args:
            A: checked activations, float32 and C order; possibly a view of the file at ``upload``.
        """
        with store_errors():
            if not _holds(upload, A):
                upload.unlink(missing_ok=True)  # A may still be mapped from it: the mapping stays
                with upload.open("xb") as file:
                    _write_header(file, *A.shape)
                    file.write(A.data)
            with upload.open("rb") as file:
                os.fsync(file.fileno())
                head = file.read(npy_format.HEAD_BYTES)
            fsync_directory(upload.parent)
        self._share(upload)
        return Staged(
            file=upload.name,
            data_offset=npy_format.parse_header(head).data_offset,
            rows=A.shape[0],
            n_features=A.shape[1],
            sha256=_sha256(A),
        )

    def require_room(self, rows: int, n_features: int) -> None:
        """Raises StoreFull where the disk has no room for so many activations."""
        with store_errors():
            free = shutil.disk_usage(self._workplace.activations).free
        needed = rows * n_features * np.dtype(np.float32).itemsize
        if needed > free:
            raise StoreFull(
                f"{rows} rows of {n_features} features take {needed} bytes in the store, which has {free}"
            )

    def stage_blocks(
        self, file: str, rows: int, n_features: int, blocks: Iterable[np.ndarray], stopped: Callable[[], bool]
    ) -> Staged | None:
        """Activations that come in blocks of rows, made durable; None once ``stopped`` says so.

        They come into their place as a whole: another attempt at the job may have put the same there, and use it.

        Raises:
            Whatever ``blocks`` raises; StoreUnavailable, StoreFull.
        """
        self.require_room(rows, n_features)
        path, half = self.path(file), self._workplace.staging / self._workplace.owned_name()
        with store_errors():
            try:
                if (written := _write_blocks(half, rows, n_features, blocks, stopped)) is None:
                    return None
                half.replace(path)
                fsync_directory(path.parent)
            finally:
                half.unlink(missing_ok=True)
        self.note_on_record(file)  # its job may have ended elsewhere by now: nobody else would remove it
        self._share(path)
        data_offset, sha256 = written
        return Staged(file, data_offset, rows, n_features, sha256)

    def _share(self, path: Path) -> None:
        if self._shared is not None:
            self._shared.put(path, path.name)

    def fetch(self, data: dict[str, Any]) -> None:
        """Have the activations of a record here, where they were staged elsewhere.

        Raises:
            DataChanged: they are gone.
            StoreUnavailable: the disk, or where they were staged, cannot be used now.
        """
        path = self.path(data["file"])
        nbytes = data["data_offset"] + data["rows"] * data["n_features"] * np.dtype(np.float32).itemsize
        self.note_on_record(data["file"])
        with store_errors():
            if self._shared is None or (path.exists() and path.stat().st_size >= nbytes):
                return
        self.require_room(data["rows"], data["n_features"])
        with store_errors():
            found = self._shared.get(path.name, self._workplace.staging / self._workplace.owned_name(), path)
        self.note_on_record(data["file"])  # again: a sweep that came meanwhile has found nothing
        if not found:
            raise DataChanged("the activations of this fit are in the object store no more; send them again")

    def note_on_record(self, file: str) -> None:
        """To be told of a file whose job is on record, which may end elsewhere."""
        self._of_jobs.add(file)

    def discard(self, file: str) -> None:
        """Remove a file that is not needed any more. One that cannot be removed now is left to a sweep."""
        if self._shared is not None:
            self._shared.discard(file)
        self._unlink(file)

    def _unlink(self, file: str) -> None:
        try:
            self.path(file).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("activations stay until they can be removed: %s", error)

    def sweep(self, alive: Callable[[], set[str]], needed: Callable[[], set[str]]) -> None:
        """Remove what no living process is about to give a job and, asked after that, no unended job needs."""
        with store_errors():
            files = list(self._workplace.activations.iterdir())
        of_jobs = self._of_jobs & {path.name for path in files}
        self._of_jobs &= of_jobs
        owners = alive()
        left = {path.name for path in files if owner_of(path) not in owners or self._is_old(path)} | of_jobs
        for file in left - needed() if left else ():
            self._unlink(file)

    def _is_old(self, path: Path) -> bool:
        """Whether it can only be of a job on record, which may have ended elsewhere."""
        with suppress(FileNotFoundError):
            return self._shared is not None and path.stat().st_mtime < time.time() - GRACE_SECONDS
        return False

    def sweep_shared(self, needed: Callable[[], set[str]]) -> None:
        """The same among the objects, now and then."""
        if self._shared is not None:
            self._shared.sweep(lambda names: names - needed())


def _write_header(file: IO[bytes], rows: int, n_features: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, n_features)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_blocks(
    path: Path, rows: int, n_features: int, blocks: Iterable[np.ndarray], stopped: Callable[[], bool]
) -> tuple[int, str] | None:
    """Where the rows begin in the file, which is durable, and their SHA-256."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        _write_header(file, rows, n_features)
        data_offset = file.tell()
        for block in blocks:
            if stopped():
                return None
            file.write(block.data)
            digest.update(block.data)
        file.flush()
        os.fsync(file.fileno())
    return data_offset, digest.hexdigest()


def _holds(upload: Path, A: np.ndarray) -> bool:
    """Whether the file is an npy of exactly these activations: A is then a view of its mapping."""
    if not upload.exists() or A.base is None or A.flags.writeable:
        return False
    with upload.open("rb") as file:
        head = file.read(npy_format.HEAD_BYTES)
    if not head.startswith(npy_format.MAGIC):  # safetensors, of which A may be a view as well
        return False
    header = npy_format.parse_header(head)
    aligned = header.data_offset % ALIGNMENT == 0
    return aligned and header.dtype == np.dtype("<f4") and not header.fortran_order


def _sha256(A: np.ndarray) -> str:
    digest = hashlib.sha256()
    rows = max(1, HASH_ROWS_BYTES // max(1, A.shape[1] * A.itemsize))
    for start in range(0, len(A), rows):
        digest.update(A[start : start + rows].data)
    return digest.hexdigest()
