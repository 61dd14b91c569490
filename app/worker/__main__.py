"""``python -m app.worker FD PID``: started by the service, process PID, with its end of the channel.

With ``RANK SIZE RENDEZVOUS`` after these it is one of the SIZE processes that share out the rows of one fit.
"""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys

from app import logs
from app.worker.parent import die_with


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with(int(sys.argv[2]))  # the closed channel tells of it only between two slices
    # What a terminal sends (Ctrl-C, and when it is closed) and a SIGTERM to the group are for the service, which lets
    # the worker finish first.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.configure(
        "json" if os.environ.get("DICTSERVE_LOG_FORMAT") == "json" else "text",
        os.environ.get("DICTSERVE_LOG_LEVEL", "info"),
    )

    gc.disable()  # see app/commands/service.py
    import core  # noqa: F401 - before torch: it settles how the threads of both pools wait
    from app.worker.device import DeviceFailed
    from app.worker.frames import Closed, send
    from app.worker.messages import DeviceLost

    logger, code, of_ranks = logging.getLogger("dictserve.worker"), 0, sys.argv[3:]
    if of_ranks:
        from app.worker.ranked import serve
    else:
        from app.worker.loop import Worker  # after the signals are settled: this import takes a second
    gc.freeze()
    gc.enable()
    try:
        if of_ranks:
            rank, size, rendezvous = of_ranks
            serve(channel, int(rank), int(size), rendezvous)
        else:
            Worker(channel).run()
    except Closed:
        logger.debug("the service has closed the channel")
    except DeviceFailed as error:
        code = 1
        if of_ranks:
            logger.error("the device has failed: %s", error)
        else:  # the service tells it, once
            with contextlib.suppress(Closed):
                send(channel, DeviceLost(str(error)[:1000], error.devices))
    logging.shutdown()
    # At once: to take all modules down, as Python does at an end, costs most of a second and is of no use, and to
    # take down what is on a device that has failed may never end.
    os._exit(code)


if __name__ == "__main__":
    main()
