"""The service, as the parent of the processes that compute for it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(service: int) -> None:
    """Have the kernel kill this process when the service dies, even in the midst of a long computation. A service
    that died before is no parent any more."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != service:
        sys.exit("the service was gone before its process had begun")
