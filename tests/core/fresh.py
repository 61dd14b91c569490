"""Code in a process of its own: of a new interpreter, or of a fork of one that has loaded torch, which takes longer
to load than most of this to run: ``python -m tests.core.fresh CODE...``.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
NONE: Mapping[str, str] = MappingProxyType({})


def run_fresh(code: str, variables: Mapping[str, str] = NONE) -> str:
    """The output of `code` in a fresh interpreter, with these variables in its environment."""
    return _output(["-c", code], variables)


def run_each(*codes: str, variables: Mapping[str, str] = NONE) -> list[str]:
    """The line that each prints, one after the other. There is nothing of `core` in a process to begin with."""
    return _output(["-m", "tests.core.fresh", *codes], {"OMP_WAIT_POLICY": "PASSIVE", **variables}).splitlines()


def forked(work: Callable[[], object]) -> int:
    """The process that does this work and then ends."""
    if (process := os.fork()) != 0:
        return process
    status = 1
    try:
        work()
        sys.stdout.flush()
        status = 0
    except BaseException:  # which is nobody's but this process's
        traceback.print_exc()
    finally:
        os._exit(status)


def _output(arguments: list[str], variables: Mapping[str, str]) -> str:
    command, env = [sys.executable, *arguments], {**os.environ, **variables}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT).stdout.strip()


def main() -> None:
    import torch  # noqa: F401

    for code in sys.argv[1:]:
        if os.waitpid(forked(lambda code=code: exec(code, {})), 0)[1]:  # noqa: S102
            sys.exit(1)


if __name__ == "__main__":
    main()
