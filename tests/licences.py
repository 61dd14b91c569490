"""The licences of everything that dictserve needs to run, from the metadata of the installed packages.

``python -m tests.licences`` writes docs/licences.md; with ``--check`` it changes nothing, and fails where that page
is stale or a package has a licence that is not on the list below (``make check``).
"""

import re
import sys
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
EXTRAS = ("otel",)
LISTED_ON = (3, 11)  # what is needed differs a little between versions of Python

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "ISC", "MIT", "PSF-2.0", "Zlib"),
}
# Asks for nothing while its files are used as they are: whoever changes one of them passes that file's source on.
UNCHANGED = {"MPL-2.0"}
IN_WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
# PyPI's torch for x86-64 Linux brings these, CPU builds do not: the page tells of them in words.
WITH_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")

TEXT = """# Licences

What dictserve and its extra `otel` need to run, and what that needs in turn, with the licence that each package's own
metadata tells. Made by `python -m tests.licences`. `make check` fails where this page is stale, or a licence neither
permissive ({permissive})
nor {unchanged}, which asks for nothing while a package is used as it is. The versions are in `constraints.txt`. What
tests and benchmarks need is not on this page: no user of the service installs it.

| package | licence | needed by |
| --- | --- | --- |
{rows}

## With CUDA

The table is of torch's CPU build. PyPI's torch for x86-64 Linux needs more: `triton` (MIT), and NVIDIA's libraries
(`nvidia-*`, `cuda-toolkit`, `cuda-bindings`), most of which are not open source: they come under NVIDIA's own terms,
to be read before an image that holds them is passed on. The image also holds Debian's packages, those of its base and
`libgomp1`, with their licences in `/usr/share/doc`.
"""


@dataclass
class Package:
    """An installed package, what its licence is, and which others asked for it (``dictserve`` first)."""

    name: str
    licence: str
    needed_by: set[str] = field(default_factory=set)

    @property
    def is_fine(self) -> bool:
        return bool(self.licence) and parts(self.licence) <= PERMISSIVE | UNCHANGED


def parts(expression: str) -> set[str]:
    """Every licence that an SPDX expression names; of alternatives, too, all must be fine."""
    return {part.strip() for part in re.split(r"\bAND\b|\bOR\b|[()]", expression)} - {""}


def licence_of(package: Distribution) -> str:
    """An SPDX expression, empty where the metadata tells of none."""
    told = package.metadata
    if expression := told.get("License-Expression"):
        return expression
    text = (told.get("License") or "").strip()
    text = IN_WORDS.get(text, text)
    if parts(text) <= PERMISSIVE | UNCHANGED and text not in ("", "BSD"):
        return text
    classifiers = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    return " AND ".join(sorted(IN_WORDS.get(c, c) for c in classifiers))


def needed() -> dict[str, Package]:
    """Packages by name, from pyproject.toml on through what is installed.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    first = [Requirement(line) for line in [*project["dependencies"], *(r for e in EXTRAS for r in optional[e])]]
    found: dict[str, Package] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [("dictserve", requirement, "") for requirement in first]
    while waiting:
        by, requirement, extra = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if WITH_CUDA.fullmatch(name) or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        package = distribution(name)
        found.setdefault(name, Package(name, licence_of(package))).needed_by.add(by)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(name, Requirement(line), extra) for line in package.requires or []]
    return found


def page(packages: dict[str, Package]) -> str:
    def told(package: Package) -> str:
        by = "dictserve" if "dictserve" in package.needed_by else ", ".join(sorted(package.needed_by))
        return f"| {package.name} | {package.licence} | {by} |"

    return TEXT.format(
        permissive=", ".join(sorted(PERMISSIVE)),
        unchanged=", ".join(sorted(UNCHANGED)),
        rows="\n".join(told(packages[name]) for name in sorted(packages)),
    )


def main() -> None:
    try:
        packages = needed()
    except PackageNotFoundError as error:
        sys.exit(f"licences: {error} (pip install --constraint constraints.txt --editable '.[dev]')")
    for package in packages.values():
        if not package.is_fine:
            sys.exit(f"licences: {package.name} has {package.licence or 'no licence that it tells of'}")
    if "--check" not in sys.argv:
        PAGE.write_text(page(packages))
    elif sys.version_info[:2] == LISTED_ON and PAGE.read_text() != page(packages):
        sys.exit("licences: docs/licences.md is stale; run `python -m tests.licences`")
    print(f"licences: {len(packages)} packages, all fine")


if __name__ == "__main__":
    main()
