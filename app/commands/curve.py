"""Curves and bars in text."""

import math
from collections.abc import Sequence

COLUMNS, ROWS = 60, 8
LEAST_SPAN = 0.05  # of the loss, over the whole height: what moves by less is drawn as little as it is
BLOCKS = " ▁▂▃▄▅▆▇█"


def curve(points: Sequence[tuple[int, float]]) -> str:
    """The loss over the iterations, on a logarithmic scale where it stays above zero.

    Args:
        points: (iteration, loss), the iterations ascending.
    """
    losses = [loss for _, loss in points]
    if min(losses) > 0:
        scaled, least, unscaled = [math.log(loss) for loss in losses], LEAST_SPAN, math.exp
    else:
        scaled, least, unscaled = losses, LEAST_SPAN * max(losses), float
    low = min(scaled)
    span = max(max(scaled) - low, least)
    first, last = points[0][0], points[-1][0]
    columns = min(COLUMNS, last - first + 1)
    heights = []
    index = 0
    for column in range(columns):
        at = first + (last - first) * column / max(columns - 1, 1)
        while index + 1 < len(points) and points[index + 1][0] <= at:
            index += 1
        share = (scaled[index] - low) / span if span else 0.0
        heights.append(1 + round(share * (ROWS * 8 - 1)))  # in eighths of a row; the lowest is still to be seen
    lines = ["".join(BLOCKS[max(0, min(8, height - 8 * row))] for height in heights) for row in reversed(range(ROWS))]
    told = [f"{unscaled(low + span):.4g}", *[""] * (ROWS - 2), f"{min(losses):.4g}"]
    width = max(map(len, told))
    body = [f"{label:>{width}} {line}" for label, line in zip(told, lines, strict=True)]
    return "\n".join(["loss", *body, f"{'':>{width}} iteration {first} to {last}"])


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line; what is not empty is always seen."""
    most = max(max(counts), 1)
    return "".join(BLOCKS[-(-8 * count // most)] for count in counts)
