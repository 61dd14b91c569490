"""Which licences pass."""

from email.message import Message
from types import SimpleNamespace

import pytest

from tests.licences import Package, licence_of


@pytest.mark.parametrize(
    ("licence", "is_fine"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND (Apache-2.0 OR MIT)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("MPL-2.0 AND MIT", True),
        ("", False),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", False),
        ("LGPL-2.1-or-later AND MIT", False),
        ("Apache-2.0 WITH Commons-Clause", False),
    ],
)
def test_what_passes(licence: str, is_fine: bool) -> None:
    assert Package("x", licence).is_fine == is_fine


@pytest.mark.parametrize(
    ("told", "licence"),
    [
        ({"License-Expression": "MIT AND 0BSD", "License": "GPL"}, "MIT AND 0BSD"),
        ({"License": "MIT License"}, "MIT"),
        ({"License": "Copyright (c) …", "Classifier": "License :: OSI Approved :: BSD License"}, "BSD"),
        ({"License": "BSD", "Classifier": "License :: OSI Approved :: GNU General Public License (GPL)"}, None),
        ({}, ""),
    ],
)
def test_where_it_is_told(told: dict[str, str], licence: str | None) -> None:
    metadata = Message()
    for name, value in told.items():
        metadata[name] = value
    found = licence_of(SimpleNamespace(metadata=metadata))  # type: ignore[arg-type]
    assert found == licence if licence is not None else not Package("x", found).is_fine
