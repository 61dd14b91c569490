"""``python -m app.worker.matching PID``: started by the service, process PID, to compare two dictionaries and end.

On stdin comes a ``Compare``, as JSON; on stdout goes a ``Compared``, or a ``Failed``. SciPy holds the interpreter's
lock for seconds at a time: in the service or in its worker nothing else would be done meanwhile.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

import msgspec

from app.errors import AppError
from app.store.references import Reference
from app.store.store import Store
from app.worker.messages import Compare, Compared, Failed
from app.worker.parent import die_with
from core.errors import CoreError

NICENESS = 10  # whoever waits for codes goes first


def main() -> None:
    die_with(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGHUP):  # the service ends this where that is wanted
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=Compare)
    try:
        answer: Compared | Failed = compared(told)
    except Exception as error:
        if not isinstance(error, AppError | CoreError):
            traceback.print_exc()  # into the service's log
        answer = Failed("", type(error).__name__, str(error)[:1000])
    sys.stdout.buffer.write(msgspec.json.encode(answer))


def compared(told: Compare) -> Compared:
    from core.matching import match

    store = Store(Path(told.store), told.objects, was_opened=True)
    D_a, D_b = (store.load(*Reference.parse(reference).pinned) for reference in (told.a, told.b))
    matching = match(D_a, D_b)
    pairs = zip(matching.a.tolist(), matching.b.tolist(), matching.cosines.tolist(), strict=True)
    return Compared(list(pairs), matching.stability)


if __name__ == "__main__":
    main()
