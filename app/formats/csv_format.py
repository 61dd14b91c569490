"""CSV bodies: numbers between commas, a row a line, with or without a header line.

Blank lines, CRLF and quotes around whole numbers are read; what is no number is told with its line. A header is a
first line of names, as many as a row has numbers: one with a number in it, or something missing (as pandas writes a
row of NaN), is a row that went wrong, and is not to be lost. One of the names that pandas gives columns without any,
0,1,2,…, is refused before more rows: as a row of them it would be fitted without a word.

A body is read, and an answer written, in pieces of whole lines, between which the interpreter's lock is given up: one
of hundreds of megabytes holds up nobody for long.
"""

import csv
import re
import time
from collections.abc import Iterator

import numpy as np
import orjson

from app.errors import MalformedBody
from app.formats.answer import Answer, Content
from app.formats.buffer import Buffer

PIECE_BYTES = 256 * 1024
LINE_BYTES = 8 * 1024 * 1024  # at most; numpy reads as much in 0.3 s, in which nobody else has the lock

# No part can take what the next one could, so that a long field that is no number is not tried in every way.
LINE_END = re.compile(rb"\r\n?|\n")
_NUMBER = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|nan|inf(inity)?)", re.IGNORECASE | re.ASCII)
_NO_NAME = re.compile(r"|[-+.]*\d.*|n/?an?|null|none|-+|\?", re.IGNORECASE | re.ASCII | re.DOTALL)
_PARTED = re.compile(r"\d[;\t ]+[-+.]?\d", re.ASCII)  # numbers, by something else than commas
_QUOTED = re.compile(r'(?<![^,])\s*"([^",]*)"\s*(?![^,])')  # a whole field


def read(body: Buffer, array_field: str) -> dict[str, np.ndarray]:
    """The array (float64), by the field's name.

    Raises:
        MalformedBody: it is not text, or a line holds something other than numbers, or too many or few of them.
    """
    return {array_field: _Reading().whole(body)}


class _Reading:
    """What is known of a body while its lines are read."""

    def __init__(self) -> None:
        self._values = bytearray()  # float64
        self._lines = 0  # before this piece
        self._header: tuple[str, int] | None = None  # as it was sent, and its line
        self._first = 0  # the line of the first row
        self._width = 0  # of that
        self._is_counted = False  # whether that is 0,1,2,…

    def whole(self, body: Buffer) -> np.ndarray:
        for start, piece in _pieces(body):
            if start:
                time.sleep(0)  # gives up the interpreter's lock
            try:
                text = piece.decode("utf-8" if start else "utf-8-sig")
            except UnicodeDecodeError as error:
                told = f"{error.reason} at byte {start + error.start}"
                raise MalformedBody(f"the CSV is not UTF-8: {told}") from None
            self._read(text)
        if not self._width:
            header = self._header
            told = "" if header is None else f": line {header[1]} was taken for a header, for it holds no number"
            parted = "" if header is None else _parted(header[0])
            raise MalformedBody(f"the CSV holds no row of numbers{told}; send at least one{parted}")
        return np.frombuffer(self._values, np.float64).reshape(-1, self._width)

    def _read(self, text: str) -> None:
        lines = sent = text.splitlines()
        if '"' in text:  # numpy's own quotes may stand within a number, and join what they part: 1"2"5 would be 125
            lines = [_QUOTED.sub(r"\1", line) for line in lines]
        filled = [index for index, line in enumerate(lines) if line.strip()]
        if filled and not self._width and self._header is None:
            index = filled[0]
            if not any(map(_is_number, lines[index].split(","))):
                self._header = sent[index], self._lines + index + 1
                del filled[0]
        rows, numbers = [lines[index] for index in filled], [self._lines + index + 1 for index in filled]
        self._lines += len(lines)
        if not rows:
            return
        if not self._width:
            self._first, self._width = numbers[0], rows[0].count(",") + 1
            if self._header is not None:
                _check_header(*self._header, self._width, self._first)
            elif rows[0].startswith("0,1,2"):
                self._is_counted = all(part == str(at) for at, part in enumerate(rows[0].split(",")))
        if self._is_counted and numbers[-1] > self._first:
            raise MalformedBody(
                f"line {self._first} is 0,1,2,…: column names, as pandas writes them? save with header=False; "
                "a row of these numbers is written 0.0,1.0,…"
            )
        try:
            array = np.loadtxt(rows, np.float64, comments=None, delimiter=",", ndmin=2)
        except ValueError:
            raise self._wrong(rows, numbers) from None
        if array.shape[1] != self._width:
            raise self._wrong(rows, numbers)
        self._values += array.data

    def _wrong(self, rows: list[str], numbers: list[int]) -> MalformedBody:
        """The first line that is wrong, and how."""
        for row, number in zip(rows, numbers, strict=True):
            parts = row.split(",")
            if '"' in row:
                told = 'a quote belongs before and after a whole number that has no comma in it, as in "1.5"'
                return MalformedBody(f"line {number}: {told}")
            if len(parts) != self._width:
                told = f"{len(parts)} values, but line {self._first} has {self._width}"
                return MalformedBody(f"line {number} has {told}")
            for column, part in enumerate(parts):
                if not _is_number(part):
                    may_be_header = self._header is None and number == self._first
                    told = " (a header line would hold none)" if may_be_header else ""
                    what = f"{part.strip()[:30]!r} is not a number{told}{_parted(part)}"
                    return MalformedBody(f"line {number}, column {column + 1}: {what}")
        return MalformedBody("the CSV cannot be read as rows of numbers")


def _pieces(body: Buffer) -> Iterator[tuple[int, bytes]]:
    """Where each begins, and what it holds: whole lines."""
    start = 0
    while start < len(body):
        last = start + PIECE_BYTES + LINE_BYTES
        end = LINE_END.search(body, start + PIECE_BYTES, last + 1)
        if end is None and last < len(body):
            raise MalformedBody(f"the CSV has a line of more than {LINE_BYTES} bytes, at byte {start + PIECE_BYTES}")
        stop = len(body) if end is None else end.end()
        yield start, bytes(body[start:stop])
        start = stop


def write(answer: Answer) -> Content:
    """The rows of the one array; the scalars are in the headers."""
    array = np.ascontiguousarray(answer.main)
    rows = max(1, PIECE_BYTES * len(array) // max(1, array.nbytes))
    if len(array) <= rows:
        return _written(array)
    return tuple(memoryview(part) for part in _parts(array, rows))


def _parts(array: np.ndarray, rows: int) -> Iterator[bytes]:
    for start in range(0, len(array), rows):
        time.sleep(0)  # gives up the interpreter's lock
        yield _written(array[start : start + rows])


def _written(array: np.ndarray) -> bytes:
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].replace(b"],[", b"\n") + b"\n"


def _is_number(part: str) -> bool:
    return _NUMBER.fullmatch(part.strip()) is not None


def _parted(part: str) -> str:
    """What helps whoever has several numbers where one was looked for."""
    return "" if _PARTED.search(part) is None else "; values stand between commas"


def _check_header(line: str, number: int, width: int, first: int) -> None:
    """Raises MalformedBody where a line without numbers is no header either: line ``first`` has ``width`` values."""
    try:
        (names,) = csv.reader([line])
    except csv.Error:  # a name of more than 128 KiB
        names = line.split(",")
    for column, name in enumerate(names, start=1):
        if _NO_NAME.fullmatch(name.strip()):
            told = f"{name.strip()[:30]!r} is no number, nor a column's name in a header{_parted(name)}"
            raise MalformedBody(f"line {number}, column {column}: {told}")
    if len(names) != width:
        raise MalformedBody(f"line {number}, a header, has {len(names)} names, but line {first} {width} values")
