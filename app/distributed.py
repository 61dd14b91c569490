"""``torchrun --nproc-per-node 2 -m app.distributed --data a.npy --nb-concepts 64 --output d.safetensors``: a fit
whose rows are shared out over processes, on one machine or on several, without the service.

Every process maps its rows of the same file; rank 0 tells of the progress and writes the dictionary. RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT say who the ranks are, as torchrun sets them.
"""

import argparse
import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import orjson
import pydantic
import safetensors.numpy

from app.errors import AppError, InvalidFields, StoreUnavailable
from app.formats import npy_format
from app.jobs.attempt import history_of
from app.jobs.retrying import REACH_SECONDS
from app.schemas import FitParameters
from app.store.disk import fsync_directory, write_durably
from app.store.store import Store
from app.store.weights import TENSOR
from app.worker.messages import INIT_METHODS, Fit, FitProgress, Fitted, Message
from core.errors import CoreError, RankLost

PATIENCE_SECONDS, MOST_SECONDS = 600.0, 1e7
AGAIN_SECONDS = 5.0  # between two times that a dictionary is written

T = TypeVar("T")
OF_ALL = ("nb_concepts", "solver", "max_iter", "tol", "init", "seed")


class AgreedError(Exception):
    """What was wrong once the ranks had met: all of them end with it, and rank 0 tells it."""


def main() -> NoReturn:
    """Leaves at once, however it ends: torch's threads, which an ordinary exit waits for, may wait for another rank;
    and one that is still there as modules are taken down ends the process as if it had failed."""
    arguments = _arguments()
    rank = 0
    try:
        rank, size = _place("RANK", "WORLD_SIZE")
        _fit(arguments, _parameters(arguments), rank, size)
    except AgreedError as error:
        _end(rank, str(error) if rank == 0 else "")
    except (AppError, CoreError, OSError) as error:  # of this rank, or found by it before it has met the others
        _end(rank, str(error))
    except Exception:
        _end(rank, traceback.format_exc())
    sys.stdout.flush()
    os._exit(0)


def _end(rank: int, told: str) -> NoReturn:
    if told:
        print(f"app.distributed: rank {rank}: {told}", file=sys.stderr, flush=True)
    os._exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.distributed", description="Fit a dictionary on several processes.")
    parser.add_argument("--data", type=Path, required=True, help="npy file of activations, which every rank can read")
    for name in OF_ALL:
        field = FitParameters.model_fields[name]
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, required=field.is_required(), default=argparse.SUPPRESS, help=field.description)
    parser.add_argument("--output", type=Path, help="safetensors file to write the dictionary to")
    parser.add_argument("--store", type=Path, help="in its place: the model store to publish it in, under --name")
    parser.add_argument("--name", default="dictionary", help="of the dictionary in the store")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU for each rank, if any")
    parser.add_argument(
        "--patience-seconds", type=_seconds, default=PATIENCE_SECONDS, help="longest wait of a rank for the others"
    )
    arguments = parser.parse_args()
    if (arguments.output is None) == (arguments.store is None):
        parser.error("give --output or --store")
    return arguments


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < MOST_SECONDS:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and below {MOST_SECONDS:g}")


def _place(rank: str, size: str) -> tuple[int, int]:
    """This rank and how many there are, by these variables, as torchrun sets them."""
    told = [os.environ.get(rank, "0"), os.environ.get(size, "1")]
    if not all(text.isdecimal() for text in told) or not int(told[0]) < int(told[1]):
        raise InvalidFields.at(rank, msg=f"{told[0]!r} of {size} {told[1]!r} is no rank; torchrun sets both")
    return int(told[0]), int(told[1])


def _parameters(arguments: argparse.Namespace) -> FitParameters:
    told = {name: value for name, value in vars(arguments).items() if name in OF_ALL}
    try:
        parameters = FitParameters(name=arguments.name, **told)
    except pydantic.ValidationError as error:
        raise InvalidFields.from_pydantic(error) from None
    if parameters.init not in INIT_METHODS and arguments.store is None:
        raise InvalidFields.at("init", msg=f"one of {', '.join(INIT_METHODS)}; a dictionary only with --store")
    return parameters


def _fit(arguments: argparse.Namespace, parameters: FitParameters, rank: int, size: int) -> None:
    A, offset = _mapped(arguments.data)
    store = Store(arguments.store or Path("models"))
    if rank == 0:  # before all else: what is fitted is to find its place
        if arguments.store is None:
            _put(arguments.output, b"", place=False)
        else:
            store.workplace.open()
            store.require_free(parameters.name)
    from app.worker import ranked  # torch, which takes seconds: whoever has mistyped a path does not wait for it

    local_rank, local_size = _place("LOCAL_RANK", "LOCAL_WORLD_SIZE")
    device = ranked.device_of(arguments.device, local_rank, local_size)
    is_method = parameters.init in INIT_METHODS
    method = {"init": parameters.init} if is_method else {"init": "auto", "start": parameters.init}
    told = parameters.model_dump(include={*OF_ALL} - {"init"}) | method
    fit = Fit(job="", path=str(arguments.data), data_offset=offset, rows=len(A), n_features=A.shape[1], **told)
    results: list[tuple[Fitted, tuple[np.ndarray, ...]]] = []

    def tell(message: Message, *arrays: np.ndarray) -> None:
        if isinstance(message, FitProgress):
            _print_progress(message)
        elif isinstance(message, Fitted):
            results.append((message, arrays))

    patience = timedelta(seconds=arguments.patience_seconds)
    with ranked.joined_by_environment(rank, size, local_size, device, patience) as ranks:
        mine = A[ranked.share_of(len(A), rank, size)]
        try:
            ranks.require_same({"rows": len(A)})
            ranked.RankedFit(fit, ranks, device, store, tell if rank == 0 else _quiet).run(mine)
        except RankLost:
            raise
        except CoreError as error:
            raise AgreedError(str(error)) from error
    for fitted, (D, metrics, losses, figures) in results:
        record: dict[str, Any] = {"loss": float(losses[-1]) if len(losses) else 0.0, "iterations": len(losses)}
        record |= {"seconds": fitted.seconds, "ranks": size, "metrics": orjson.loads(metrics.tobytes())}
        if arguments.store is None:
            _reached(partial(_put, arguments.output, safetensors.numpy.save({TENSOR: D})))
            told_of = {"output": str(arguments.output)}
        else:
            publish = partial(_publish, store, parameters, A, D, record, losses, figures)
            told_of = {"dictionary": _reached(publish)}
        del record["metrics"]["energy"]  # a number for each concept: the dictionary's record has them
        print(orjson.dumps(told_of | record, option=orjson.OPT_INDENT_2).decode())


def _mapped(path: Path) -> tuple[np.ndarray, int]:
    """The array of an npy file, mapped, and where it begins there."""
    with path.open("rb") as file:
        header = npy_format.parse_header(file.read(npy_format.HEAD_BYTES))
    if len(header.shape) != 2 or header.fortran_order:
        raise InvalidFields.at("data", msg=f"{path} must hold (rows, n_features) in C order")
    try:
        return np.memmap(path, header.dtype, "r", header.data_offset, header.shape), header.data_offset
    except ValueError as error:
        raise InvalidFields.at("data", msg=f"{path} is shorter than its header says, or empty: {error}") from None


def _quiet(message: Message, *arrays: np.ndarray) -> None:
    """What ranks other than 0 tell."""


def _print_progress(told: FitProgress) -> None:
    loss = "" if told.loss is None else f" loss {told.loss:.6g}, relative error {told.relative_error:.4g},"
    line = f"iteration {told.iteration}/{told.max_iter}:{loss} {told.seconds:.1f} s"
    print(line, file=sys.stderr, flush=True)


def _reached(write: Callable[[], T]) -> T:
    """A result is not lost for a disk that is full or away: it is tried again for as long as the service would."""
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        try:
            return write()
        except (StoreUnavailable, OSError) as error:
            if time.monotonic() > deadline:
                raise
            print(f"app.distributed: the dictionary waits for its place: {error}", file=sys.stderr, flush=True)
            time.sleep(AGAIN_SECONDS)


def _put(path: Path, content: bytes, *, place: bool = True) -> None:
    """The whole of a file, or nothing; without ``place`` it is only seen whether that can be."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_durably(staged, content)
        if place:
            staged.replace(path)
            fsync_directory(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def _publish(
    store: Store,
    parameters: FitParameters,
    A: np.ndarray,
    D: np.ndarray,
    record: dict[str, Any],
    losses: np.ndarray,
    figures: np.ndarray,
) -> str:
    from app.worker.outcomes import software  # torch, which is here by now

    published = store.publish(
        parameters.name,
        D,
        figures.tobytes(),
        parameters=parameters.model_dump(exclude={"name"}, exclude_none=True) | {"ranks": record["ranks"]},
        data={"rows": A.shape[0], "n_features": A.shape[1]},
        metrics=record["metrics"],
        loss_history=history_of(losses),
        seconds=record["seconds"],
        software=software(),
    )
    store.workplace.close()
    return str(published.reference)


if __name__ == "__main__":
    main()
