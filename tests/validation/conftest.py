"""Photographs for the tests of validations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import twofold


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photographs."""
    return twofold.photographs(tmp_path_factory.mktemp("images") / "photographs")
