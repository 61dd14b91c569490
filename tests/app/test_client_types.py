"""What type checkers see of the client, and that it comes to who installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import app

ROOT = Path(app.__file__).parents[1]
VALID = """
from typing import Any, assert_type

from app.client import AsyncClient, AsyncDictionary, AsyncJob, Client, Dictionary, Encoded, Job

A = [[1.0, 2.0]]


def blocking(client: Client, known: Dictionary, either: bool) -> None:
    assert_type(client.fit(A, nb_concepts=1, name="x", init=known), Dictionary)
    assert_type(client.fit(A, nb_concepts=1, name="x", wait=False), Job)
    assert_type(client.fit(A, nb_concepts=1, name="x", wait=either), Dictionary | Job)
    assert_type(client.encode(A, known, full=True), Encoded)
    assert_type(client.encode(A, "x", full=either), Any)
    assert_type(known.encode(A, full=either), Any)
    client.decode(A, known)
    client.dictionary(known), client.get_dictionary(known), client.concepts(known), client.concept(known, 1)
    client.compare(known, "x"), client.label(known, {"a": "b"})
    client.remove(known)


async def asynchronous(client: AsyncClient, known: AsyncDictionary, either: bool) -> None:
    assert_type(await client.fit(A, nb_concepts=1, name="x", init=known), AsyncDictionary)
    assert_type(await client.fit(A, nb_concepts=1, name="x", wait=False), AsyncJob)
    assert_type(await client.fit(A, nb_concepts=1, name="x", wait=either), AsyncDictionary | AsyncJob)
    assert_type(await client.encode(A, known, full=True), Encoded)
    assert_type(await client.encode(A, "x", full=either), Any)
    assert_type(await known.encode(A, full=either), Any)
    await client.decode(A, known)
    await client.dictionary(known), await client.get_dictionary(known), await client.concepts(known)
    await client.concept(known, 1), await client.compare(known, "x"), await client.label(known, {"a": "b"})
    await client.remove(known)
"""
WRONG = """
from app.client import Client

Client().encode([[1.0]], 3)
Client().encode([[1.0]], "x", full="yes")
Client().fit([[1.0]], name="x")
"""
OUTPUTS = """
from setuptools.dist import Distribution

package = Distribution({"script_name": "pyproject.toml"})
package.parse_config_files()
build = package.get_command_obj("build_py")
build.ensure_finalized()
print(*build.get_outputs(include_bytecode=0), sep="\\n")
"""


def checked(tmp_path: Path, text: str) -> str:
    (tmp_path / "program.py").write_text(text)
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", "cache"]
    command = [sys.executable, "-m", "mypy", *options, "program.py"]
    env = os.environ | {"MYPYPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env).stdout


def test_calls_that_are_valid_are_so_to_a_type_checker(tmp_path: Path) -> None:
    assert checked(tmp_path, VALID) == "Success: no issues found in 1 source file\n"
    assert checked(tmp_path, WRONG).count("error: ") == 3


@pytest.mark.parametrize("package", ["app", "core"])
def test_an_installed_package_says_that_it_has_types(package: str) -> None:
    built = subprocess.run([sys.executable, "-c", OUTPUTS], capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"build/lib/{package}/py.typed" in built.stdout.splitlines()
