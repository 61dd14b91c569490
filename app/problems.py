"""Errors as problems of RFC 9457: what answers tell of them, and jobs' records."""

import logging
from collections.abc import Iterable

import msgspec

from app.errors import INTERNAL, FieldError, InvalidFields, Kind, kind_of, shortened

logger = logging.getLogger("dictserve")


class Problem(msgspec.Struct, omit_defaults=True):
    """A problem of RFC 9457. ``type`` is a slug that stays the same from version to version."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, object]] = msgspec.field(default_factory=list)


def problem_of(error: Exception) -> Problem:
    """The problem that tells of this exception. One outside the table is logged whole and told without details."""
    kind = kind_of(error)
    if kind is INTERNAL:
        logger.error("unexpected error", exc_info=error)
        detail = "The service met an error of its own; its log has the details."
    else:
        detail = shortened(str(error))
    return problem(kind, detail, error.errors if isinstance(error, InvalidFields) else ())


def problem(kind: Kind, detail: str, errors: Iterable[FieldError] = ()) -> Problem:
    members: list[dict[str, object]] = [{"loc": list(error.loc), "msg": error.msg} for error in errors]
    return Problem(kind.slug, kind.title, kind.status, detail, members)
