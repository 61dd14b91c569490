"""What the service and its worker say to each other. Arrays travel beside a message, not in it."""

from typing import Literal, get_args

import msgspec

from app.formats.npy_file import DataFile
from app.store.object_store import ObjectStore

Task = Literal["encode", "decode"]
Dtype = Literal["float32", "float64"]
Solver = Literal["hals", "mu", "pgd", "anls"]
InitMethod = Literal["auto", "nndsvda", "random"]
INIT_METHODS: tuple[InitMethod, ...] = get_args(InitMethod)


class Message(msgspec.Struct, tag=True, frozen=True):
    """Base of all messages; its subclass's name is its tag on the wire."""


class Key(msgspec.Struct, frozen=True):
    """What is to be done with rows, and on which dictionary: rows of an equal key can be solved together."""

    task: Task
    name: str
    version: int
    reconstruct: bool = False  # tell each row's relative error, too
    dtype: Dtype = "float32"  # of the rows, the arithmetic and the answer
    top_k: int | None = None  # of an encode: of each row the largest codes alone, which the relative error is of


# -- to the worker ----------------------------------------------------------------------------------------


class Configure(Message, frozen=True):
    """The first message: what the worker is to own. ``among`` workers share the machine's cores."""

    store: str
    device: str
    cache_bytes: int
    heartbeat_seconds: float
    patience_seconds: float = 300.0  # that the ranks of a fit may wait for each other
    among: int = 1
    objects: ObjectStore | None = None


class Solve(Message, frozen=True):
    """Encode or decode the rows of the one array beside this."""

    id: int
    key: Key


class CheckpointPlace(msgspec.Struct, frozen=True):
    """Where a fit's checkpoints go, each in the place of the one before, and after how much time the next is due."""

    path: str
    staged: str  # where it is written before, on the same file system
    interval_seconds: float
    shared_as: str | None = None  # the object that each is to be, too
    replaces: list[str] = []  # objects of earlier attempts, that are needed until there is that one


class Files(msgspec.Struct, frozen=True):
    """The npy files of an online fit, in a directory whose real path is ``root``: read in place, ``epochs`` times."""

    root: str
    files: list[DataFile]
    clip: bool
    epochs: int


class Fit(Message, frozen=True):
    """Fit a dictionary to the activations in a file: float32, C order, from ``data_offset`` on.

    With ``online`` it is an online fit of the files named there instead; ``path`` and ``data_sha256`` are empty then.
    ``start`` is the dictionary to start from, as ``name@version``; ``init`` says how to start where there is none.
    ``data_sha256`` is that of the activations. With a place for checkpoints, the fit goes on from the one there.
    """

    job: str
    path: str
    data_offset: int
    rows: int
    n_features: int
    nb_concepts: int
    solver: Solver
    max_iter: int
    tol: float
    init: InitMethod
    seed: int
    start: str | None = None
    data_sha256: str = ""
    checkpoint: CheckpointPlace | None = None
    online: Files | None = None


class CancelFit(Message, frozen=True):
    job: str


class StopFit(Message, frozen=True):
    """Leave the fit with a checkpoint, as soon as it is between two iterations."""

    job: str


# -- from the worker --------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """``devices``: how many there are of which this is the first, where the worker was to find that out."""

    device: str
    software: dict[str, str]
    devices: int = 1


class DeviceMemory(msgspec.Struct, frozen=True):
    """Bytes of a GPU's memory: in the worker's tensors, kept for them by torch, and all that there is."""

    allocated: int
    reserved: int
    total: int


class Heartbeat(Message, frozen=True):
    """Sent by the worker's own loop: that it comes shows that the loop turns."""

    cached_dictionaries: int
    cached_bytes: int
    device_memory: DeviceMemory | None = None  # of a GPU


class DeviceLost(Message, frozen=True):
    """The last message of a worker whose device cannot be used any more, and why that is."""

    why: str
    devices: int = 1  # as ``Ready`` has them


class Solved(Message, frozen=True):
    """Arrays: the answer's rows, of as many as a turn sufficed for, from the first of those asked for on; of an
    encode also whether each row converged (uint8), and with ``reconstruct`` each row's relative error."""

    id: int


class Failed(Message, frozen=True):
    """A solve or a fit that ended in an error; ``error`` is the name of its class in the error trees."""

    id: int | str
    error: str
    detail: str


class FitBegun(Message, frozen=True):
    """The first that is told of an attempt: after which iteration it goes on, 0 for a fit from its start, and what
    time the fit had taken by then. Array: the losses of the iterations before (float64)."""

    job: str
    iteration: int
    seconds: float


class FitProgress(Message, frozen=True):
    """``seconds`` are those of this attempt; so are those of ``Fitted``."""

    job: str
    iteration: int
    max_iter: int
    loss: float | None
    relative_error: float | None
    kkt_residual: float | None
    seconds: float


class Fitted(Message, frozen=True):
    """Arrays: D, the dictionary's metrics as JSON bytes (uint8), the loss after each iteration (float64), and the
    file of the concepts' figures (uint8)."""

    job: str
    seconds: float


class FitCancelled(Message, frozen=True):
    job: str


class FitStopped(Message, frozen=True):
    job: str


# -- to a comparison's process, and from it ---------------------------------------------------------------


class Compare(Message, frozen=True):
    """Two dictionaries, ``name@version``, that can be loaded without waiting for a network."""

    store: str
    objects: ObjectStore | None
    a: str
    b: str


class Compared(Message, frozen=True):
    """Concept of one, concept of the other, cosine, from the largest on; as ``core.matching`` finds them."""

    pairs: list[tuple[int, int, float]]
    stability: float


ENDS_OF_FITS = (Fitted, FitStopped, FitCancelled, Failed)

ToWorker = Configure | Solve | Fit | CancelFit | StopFit
FromWorker = (
    Ready | Heartbeat | DeviceLost | Solved | Failed | FitBegun | FitProgress | Fitted | FitCancelled | FitStopped
)
