"""A service and its worker fit, encode and decode in every format without unpickling anything: unpickling runs code
that is in the bytes.

Both processes start with ``pickle`` booby-trapped. One caller is let through: Numba's cache of compiled kernels,
whose files are code as Python's own ``.pyc`` files are (docs/operations.md, "What is trusted").
"""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy

from demo.digits import split_digits
from demo.service import npy
from tests.e2e.conftest import Service

FITTED, HELD_OUT = split_digits()
LET_THROUGH = {"numba.core.caching"}

TRAP = """
import _pickle, os, pickle, sys

def tell(what, caller):
    with open(os.environ["TRAP_LOG"], "a") as log:
        log.write(f"{os.getpid()} {what} {caller}\\n")

def spring(name):
    caller = sys._getframe(2).f_globals.get("__name__", "")
    tell(name, caller)
    if caller not in os.environ["TRAP_LETS_THROUGH"].split(","):
        raise RuntimeError(f"{caller} unpickles")

def trapped(name, real):
    def call(*args, **kwargs):
        spring(name)
        return real(*args, **kwargs)
    return call

class Unpickler(pickle.Unpickler):
    def __init__(self, *args, **kwargs):
        spring("Unpickler")
        super().__init__(*args, **kwargs)

for module in (pickle, _pickle):
    module.load, module.loads = trapped("load", module.load), trapped("loads", module.loads)
    module.Unpickler = Unpickler
pickle._Unpickler = Unpickler
tell("armed", "")
"""


class Trapped(Service):
    """A service whose Python, and its worker's, has the trap."""

    def __init__(self, folder: Path) -> None:
        self.trap_log = folder / "trap.log"
        (folder / "trap").mkdir()
        (folder / "trap" / "sitecustomize.py").write_text(TRAP)
        paths = [str(folder / "trap"), *filter(None, [os.environ.get("PYTHONPATH")])]
        super().__init__(
            folder / "models",
            PYTHONPATH=os.pathsep.join(paths),
            TRAP_LOG=str(self.trap_log),
            TRAP_LETS_THROUGH=",".join(LET_THROUGH),
        )

    def told(self) -> set[tuple[int, str, str]]:
        """Process, what was called, and by which module."""
        lines = [line.split(" ") for line in self.trap_log.read_text().splitlines()]
        return {(int(pid), what, caller) for pid, what, caller in lines}


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trapped]:
    service = Trapped(tmp_path_factory.mktemp("trapped"))
    service.start()
    yield service
    assert service.stop() == 0


def test_nothing_is_unpickled_on_the_whole_way(trapped: Trapped) -> None:
    job = trapped.ended(trapped.fit(FITTED[:200], name="digits", nb_concepts=8, max_iter=20))
    assert job["state"] == "succeeded", job
    rows = HELD_OUT[:3]
    bodies: list[tuple[str, bytes]] = [
        ("application/x-npy", npy(rows)),
        ("application/vnd.safetensors", safetensors.numpy.save({"data": rows})),
        ("text/csv", "\n".join(",".join(map(str, row)) for row in rows.tolist()).encode()),
    ]

    def sent(path: str, content_type: str, body: bytes) -> httpx.Response:
        answer = trapped.client.post(
            path, params={"dictionary": "digits"}, content=body, headers={"content-type": content_type}
        )
        assert answer.status_code == 200, answer.text
        return answer

    for content_type, body in bodies:
        codes = sent("/encode", content_type, body)
        sent("/decode", content_type, codes.content)
    fields = {"dictionary": "digits", "data": rows.tolist()}
    assert trapped.client.post("/encode", json=fields).status_code == 200
    assert trapped.client.put("/dictionaries/given", content=npy(np.eye(3, dtype=np.float32))).status_code == 201
    assert trapped.client.get("/dictionaries/given/weights").status_code == 200
    assert trapped.client.get("/metrics").status_code == 200

    told = trapped.told()
    assert {(pid, "armed", "") for pid in (trapped.pid, trapped.worker_pid)} <= told
    assert {caller for _, what, caller in told if what != "armed"} <= LET_THROUGH
    assert {pid for pid, what, _ in told if what != "armed"} <= {trapped.worker_pid}, "the service unpickles nothing"


def test_pickled_arrays_are_refused_unread(trapped: Trapped) -> None:
    before = trapped.told()
    for path in ("/encode?dictionary=digits", "/decode?dictionary=digits", "/fit?name=x&nb_concepts=1"):
        answer = trapped.client.post(path, content=pickled_npy(), headers={"content-type": "application/x-npy"})
        assert answer.status_code in (400, 415, 422), answer.text
    assert trapped.told() == before


def pickled_npy() -> bytes:
    """What NumPy writes for an array of objects: a header, then a pickle."""
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }"
    header += " " * (118 - len(header) - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\x80\x04]q\x00K\x01a."
