"""Every block of README.md and docs/ is run as it stands, against a real service.

`text` is what is not to be run. Of a few commands, which need more than a machine has, it is looked at what they
would do: `LOOKED_AT` lists them with the reason. A block in any other language fails.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pg8000.dbapi
import pytest
from packaging.requirements import Requirement

from app.jobs.database import Database
from app.jobs.jobs import Jobs
from app.main import create_app
from app.settings import Settings
from demo.service import free_port
from tests.blocks import PAGES, ROOT, Block, blocks
from tests.e2e.conftest import Service
from tests.postgres import USER, Cluster
from tests.s3 import S3
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.slow

# What a block takes as given, by how it begins; and what is to be done after it.
GIVEN = {
    'torch.distributed.init_process_group("gloo")': (
        "import core, numpy as np, torch.distributed\nrows_of_this_process = np.load('a.npy')\n",
        "torch.distributed.destroy_process_group()\n",
    ),
}

# The commands of blocks as the shell is to take them.
PRELUDE = """
set -euo pipefail
curl() { command curl --silent --show-error --fail-with-body "$@"; }
dictserve() {  # a service is stopped once it answers
    if [ "$1" != serve ]; then command dictserve "$@"; return; fi
    command dictserve "$@" &
    local service=$!
    until curl "127.0.0.1:$DICTSERVE_PORT/dictionaries" && curl "127.0.0.1:$DICTSERVE_PORT/jobs"; do
        kill -0 $service
        sleep 0.5  # seconds go by until it does, and each look is two processes
    done
    kill $service
    wait $service
}
"""


# -- what is looked at instead --------------------------------------------------------------------------------


def make_has_them(*targets: str) -> None:
    """`make check demo test` is what CI runs; others take minutes, a GPU, or go on until they are stopped."""
    subprocess.run(["make", "-C", ROOT, "--dry-run", *targets], check=True, capture_output=True)


def pip_would_find_it(*arguments: str) -> None:
    """Tests install nothing."""
    command, option, constraints, package = arguments
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (command, option, (ROOT / constraints).is_file()) == ("install", "--constraint", True)
    assert package.startswith(".")  # the clone, for it is on no index
    assert Requirement(package.replace(".", project["name"], 1)).extras <= project["optional-dependencies"].keys()


def it_is_a_kustomization(command: str, option: str, folder: str) -> None:
    """There is no cluster; tests/test_deploy.py holds the manifests to schemas."""
    assert (command, option) == ("apply", "-k")
    assert (ROOT / folder / "kustomization.yaml").is_file()


def ray_would_take_it(command: str, target: str, *arguments: str) -> None:
    """A Ray cluster takes minutes: `make ray` (tests/e2e/test_ray.py) runs them."""
    from app.ray import Scale, deployment

    assert command == "run"
    assert (ROOT / target).is_file() or target == f"{deployment.__module__}:{deployment.__name__}"
    Scale.model_validate(dict(argument.split("=") for argument in arguments))


LOOKED_AT: dict[str, Callable[..., None]] = {
    "make": make_has_them,
    "pip": pip_would_find_it,
    "kubectl": it_is_a_kustomization,
    "serve": ray_would_take_it,
}


# -- the rest is run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with README's dictionary, in a folder with what blocks read."""
    folder = tmp_path_factory.mktemp("docs")
    A = np.random.default_rng(0).random((200, 12), dtype=np.float32)
    for path in ("A.npy", "data/layer4/0.npy", "data/extra/a1.npy"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / path, A)
    np.save(folder / "a.npy", A[:20])  # of which ranks, that exchange something in each iteration, need only a few
    service = Service(folder / "models", DICTSERVE_DATA_DIR=str(folder / "data")).start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def within(shared: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and the environment that blocks are run in."""
    monkeypatch.chdir(shared.store.parent)
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DICTSERVE_URL": shared.url,
        "DICTSERVE_PORT": str(free_port()),  # of services that are started
        "AWS_DEFAULT_REGION": "us-east-1",
        # a group of one process
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)


def elsewhere(page: Path, shared: Service, folder: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """Places that blocks name, and those that stand for them here; PostgreSQL and S3 where the page asks for them."""
    places = {
        "http://localhost:8000": shared.url,
        "localhost:8000": f"127.0.0.1:{shared.port}",
        "http://collector:4318": shared.url,  # which answers at once that it takes no spans
        "/mnt/models": str(folder / "mounted"),
        "/var/lib/dictserve": str(folder / "own"),
    }
    text = "".join(block.text for block in blocks(page))
    if "@database/" in text:
        postgres: Cluster = request.getfixturevalue("postgres")
        places["@database/"] = f"@127.0.0.1:{postgres.port}/"
    if "minio" in text:
        s3: S3 = request.getfixturevalue("s3")
        places |= {"http://minio:9000": s3.endpoint, "s3://bucket/models": s3.new_url()}
        places |= {"_KEY_ID=…": "_KEY_ID=key", "_ACCESS_KEY=…": "_ACCESS_KEY=key"}
    return places


TOY = {"name": "toy", "nb_concepts": 2, "data": [[1, 0, 2, 0], [0, 3, 0, 1], [1, 3, 2, 1]]}
WITH_BLOCKS = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_a_page(page: Path, shared: Service, within: None, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shared.client.post("/fit", json=TOY, headers={"prefer": "wait=30"}).raise_for_status()
    places = elsewhere(page, shared, tmp_path, request)
    for block in blocks(page):
        text = block.text.replace("--port 8000", f"--port {os.environ['DICTSERVE_PORT']}")
        for name, place in places.items():
            text = text.replace(name, place)
        match block.language:
            case "sh":
                run_shell(block, text, tmp_path / "looked-at")
            case "python":
                # here, for what blocks import takes seconds; but each with names of its own
                for start, (before, after) in GIVEN.items():
                    text = before + text + after if block.text.startswith(start) else text
                exec(compile(text, str(block), "exec"), {"__name__": "__main__"})  # noqa: S102
            case "json" if page.name == "reference.md":
                assert json.loads(text) in examples(), f"{block} is not an example of the OpenAPI document"
            case "json":
                answer = shared.client.post("/fit", content=text)
                assert answer.status_code == 202, f"{block}: {answer.text}"
            case "sql":
                run_sql(text, request.getfixturevalue("postgres"))
            case "text":
                assert not re.search(r"^\s*(\$|curl|make|dictserve|python3?|pip|torchrun) ", text, re.MULTILINE), (
                    block
                )
            case _:
                raise AssertionError(f"{block}: blocks are sh, python, json, sql or text, not {block.language!r}")
    if page.name == "operations.md":
        the_backup_is_whole(shared.store.parent)


def test_the_store_in_the_docs_is_the_store_on_the_disk(shared: Service) -> None:
    """That of `digits`; what other pages have done is under other names than this one's."""
    data = {"data": [[1, 2]]}
    fit = {"name": "tree", "nb_concepts": 1} | data
    shared.client.post("/fit", json=fit, headers={"prefer": "wait=30"}).raise_for_status()
    shared.client.patch("/dictionaries/tree", json={"labels": {"a": "b"}}).raise_for_status()
    assert shared.client.put("/dictionaries/tree", json=data).json()["version"] == 2
    assert shared.client.delete("/dictionaries/tree@2").status_code == 204
    (tree,) = re.findall(r"```text\n(models/.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    paths = re.findall(r"^  (\S+)", tree, re.MULTILINE)
    assert any(path.startswith("digits/") for path in paths)
    for path in paths:
        assert (shared.store / path.replace("digits/", "tree/")).exists(), path


def run_shell(block: Block, text: str, looked_at: Path) -> None:
    """The block in a shell of its own; of what is in `LOOKED_AT` the arguments as the shell took them."""
    stand_ins = [
        f'{name}() {{ printf "%q " {name} "$@" >> {looked_at}; echo >> {looked_at}; }}' for name in LOOKED_AT
    ]
    looked_at.write_text("")
    script = "\n".join([PRELUDE, *stand_ins, text])
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, f"{block}:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    for line in looked_at.read_text().splitlines():
        name, *arguments = shlex.split(line)
        LOOKED_AT[name](*arguments)


def run_sql(text: str, postgres: Cluster) -> None:
    with pg8000.dbapi.connect(USER, host="127.0.0.1", port=postgres.port, database="postgres") as connection:
        connection.autocommit = True
        for statement in text.split(";\n"):
            if statement.strip():
                connection.cursor().execute(statement)


def examples() -> list[object]:
    """Of the OpenAPI document, which tests/app/test_openapi.py posts."""
    found = []
    for operations in create_app(Settings()).openapi()["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            found += [example["value"] for example in content.get("examples", {}).values()]
    return found


def the_backup_is_whole(folder: Path) -> None:
    """What the page has made and restored."""
    restored = folder / "restored" / "models"
    assert (restored / "toy" / "1" / "dictionary.safetensors").exists()
    with tarfile.open(folder / "models.tar") as archive:
        left_out = re.compile(r"models/\.dictserve/(owners|staging|jobs\.sqlite3)")
        assert not [name for name in archive.getnames() if left_out.match(name)]
    database = Database(f"sqlite:///{restored / '.dictserve' / 'jobs.sqlite3'}")
    try:
        succeeded = Jobs(database).newest(100, before=None, state="succeeded", name=None)
        assert "toy" in {job.name for job in succeeded}
    finally:
        database.close()


@pytest.mark.parametrize(
    "text",
    [
        "false\necho on",
        "false | true",
        "curl localhost:1/livez",
        "curl $DICTSERVE_URL/nowhere",
        "dictserve fit --nonsense",
        "dictserve serve --port nonsense",
        "make nonsense",
        "pip install --constraint constraints.txt '.[nonsense]'",
        "pip install --constraint nowhere.txt .",
        "pip install dictserve",
        "kubectl apply -k deploy/nowhere",
        "serve run app.ray:deployment nonsense=1",
        "nonsense",
    ],
)
def test_a_block_that_fails_is_seen(text: str, within: None, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, subprocess.CalledProcessError, ValueError)):
        run_shell(Block(ROOT / "README.md", 1, "sh", text), text, tmp_path / "looked-at")


def test_what_is_looked_at_says_why_and_is_needed() -> None:
    """The list stays short: each has its reason, and there is a block with it."""
    shell = "\n".join(block.text for page in WITH_BLOCKS for block in blocks(page) if block.language == "sh")
    for name, look in LOOKED_AT.items():
        assert look.__doc__, name
        assert re.search(rf"^{name} ", shell, re.MULTILINE), name
    for given in GIVEN:
        assert any(block.text.startswith(given) for page in WITH_BLOCKS for block in blocks(page)), given
