"""The service on a Ray cluster of two nodes, which loses replicas, and a node."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from safetensors import safe_open

from demo.digits import split_digits
from demo.service import free_port, npy
from tests.e2e.conftest import gone

pytest.importorskip("ray.serve")
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

from app.ray import PROXIES, Scale

ROOT = Path(__file__).parent.parent.parent
CONFIG = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
FITTED, HELD_OUT = split_digits()
BODY = npy(HELD_OUT[:200])
CLIENTS = 6


class OnRay:
    """Two nodes, each with a proxy and a replica, on one machine."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "models"
        self.ports = [free_port(), free_port()]
        self.clients = [httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) for port in self.ports]
        self._log = folder / "serve.log"
        self._config = folder / "serve.yaml"
        self._config.write_text(yaml.safe_dump(self._configured()))
        # the nodes' processes have our environment
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.ports[1])}
        node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**node, "include_dashboard": False, "temp_dir": str(folder / "ray")}
        )
        self._second = self._cluster.add_node(**node)
        command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", self._cluster.address]
        with self._log.open("wb") as log:
            self._serve = subprocess.Popen([*command, str(self._config)], stdout=log, stderr=log, cwd=ROOT)

    def _configured(self) -> dict[str, Any]:
        """What deploy/ray tells, on this machine."""
        (application,) = CONFIG["applications"]
        here = {
            "runtime_env": {
                "env_vars": {
                    "PYTHONPATH": str(ROOT),
                    "DICTSERVE_STORE": str(self.store),
                    "DICTSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.1",
                }
            },
            "args": {"min_replicas": 2, "max_replicas": 2, "cpus": 1},
            "deployments": [{"name": "Dictserve", "max_replicas_per_node": 1}],
        }
        http = {"host": "127.0.0.1", "port": self.ports[0]}
        return CONFIG | {"http_options": http, "applications": [application | here]}
