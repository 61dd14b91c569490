"""Times as they stand in records."""

from datetime import UTC, datetime


def now() -> str:
    return timestamp(datetime.now(UTC))


def timestamp(time: datetime) -> str:
    """As text, which sorts as the times do."""
    return time.isoformat(timespec="milliseconds")
