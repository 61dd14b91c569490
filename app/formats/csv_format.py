"""CSV bodies: numbers between commas, a row a line, with or without a header line.

Blank lines, CRLF and quotes around whole numbers are read; what is no number is told with its line. A header is a
first line of names, as many as a row has numbers: one with a number in it, or something missing (as pandas writes a
row of NaN), is a row that went wrong, and is not to be lost.
"""

import csv
import re

import numpy as np
import orjson

from app.errors import MalformedBody
from app.formats.answer import Answer
from app.formats.buffer import Buffer

# No part can take what the next one could, so that a long field that is no number is not tried in every way.
_NUMBER = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|nan|inf(inity)?)", re.IGNORECASE | re.ASCII)
_NO_NAME = re.compile(r"|[-+.]*\d.*|n/?an?|null|none|-+|\?", re.IGNORECASE | re.ASCII | re.DOTALL)
_QUOTED = re.compile(r'(?<![^,])\s*"([^",]*)"\s*(?![^,])')  # a whole field


def read(body: Buffer, array_field: str) -> dict[str, np.ndarray]:
    """The array (float64), by the field's name.

    Raises:
        MalformedBody: it is not text, or a line holds something other than numbers, or too many or few of them.
    """
    try:
        text = bytes(body).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the CSV is not UTF-8: {error.reason} at byte {error.start}") from None
    lines = told = text.splitlines()
    if '"' in text:  # numpy's own quotes may stand within a number, and join what they part: 1"2"5 would be 125
        lines = [_QUOTED.sub(r"\1", line) for line in lines]
    filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
    header = 1 if filled and not any(map(_is_number, lines[filled[0] - 1].split(","))) else 0
    if len(filled) == header:
        of_header = f": line {filled[0]} was taken for a header, for it holds no number" if header else ""
        raise MalformedBody(f"the CSV holds no row of numbers{of_header}; send at least one")
    rows = [lines[number - 1] for number in filled[header:]]
    if header:
        _check_header(told[filled[0] - 1], filled[0], rows[0], filled[1])
    try:
        array = np.loadtxt(rows, np.float64, comments=None, delimiter=",", ndmin=2)
    except ValueError:
        raise _told(rows, filled[header:], has_header=header > 0) from None
    return {array_field: array}


def write(answer: Answer) -> bytes:
    """The rows of the one array; the scalars are in the headers."""
    rows = orjson.dumps(np.ascontiguousarray(answer.main), option=orjson.OPT_SERIALIZE_NUMPY)
    return rows[2:-2].replace(b"],[", b"\n") + b"\n"


def _is_number(part: str) -> bool:
    return _NUMBER.fullmatch(part.strip()) is not None


def _check_header(line: str, number: int, row: str, row_number: int) -> None:
    """Raises MalformedBody where a line without numbers is no header either."""
    try:
        (names,) = csv.reader([line])
    except csv.Error:  # a name of more than 128 KiB
        names = line.split(",")
    for column, name in enumerate(names, start=1):
        if _NO_NAME.fullmatch(name.strip()):
            told = f"{name.strip()[:30]!r} is no number, nor a column's name in a header"
            raise MalformedBody(f"line {number}, column {column}: {told}")
    if len(names) != (width := row.count(",") + 1):
        raise MalformedBody(f"line {number}, a header, has {len(names)} names, but line {row_number} {width} values")


def _told(rows: list[str], numbers: list[int], *, has_header: bool) -> MalformedBody:
    """The first line that is wrong, and how."""
    width = rows[0].count(",") + 1
    for row, number in zip(rows, numbers, strict=True):
        parts = row.split(",")
        if '"' in row:
            told = 'a quote belongs before and after a whole number that has no comma in it, as in "1.5"'
            return MalformedBody(f"line {number}: {told}")
        if len(parts) != width:
            return MalformedBody(f"line {number} has {len(parts)} values, but line {numbers[0]} has {width}")
        for column, part in enumerate(parts):
            if not _is_number(part):
                told = "" if has_header or row is not rows[0] else " (a header line would hold none)"
                return MalformedBody(
                    f"line {number}, column {column + 1}: {part.strip()[:30]!r} is not a number{told}"
                )
    return MalformedBody("the CSV cannot be read as rows of numbers")
