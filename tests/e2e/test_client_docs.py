"""docs/client.md and docs/cli.md run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.client import Client
from tests.e2e.conftest import Service

ROOT = Path(__file__).parents[2]
CLIENT = (ROOT / "docs" / "client.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", CLIENT, re.DOTALL))
def test_python_blocks_run(shared: Service, block: str) -> None:
    code = block.replace("localhost:8000", f"127.0.0.1:{shared.port}")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_shell_block_runs(shared: Service, tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", CLI, re.DOTALL)
    np.save(tmp_path / "A.npy", np.random.default_rng(0).random((200, 12), dtype=np.float32))
    script = "set -euo pipefail\n" + re.sub(r"\bdictserve\b", f"{sys.executable} -m app", block)
    environment = os.environ | {"DICTSERVE_URL": shared.url, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "back.csv").read_text().splitlines()) == 200


def test_every_command_and_method_is_documented() -> None:
    for command in main.registered_commands:
        assert re.search(rf"`{command.name}\b", CLI), command.name
    for name in vars(Client):
        if not name.startswith("_") and name not in ("send", "close"):
            assert re.search(rf"`{name}\(", CLIENT), name
