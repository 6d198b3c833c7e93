"""Fixtures that several test files share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real public models, tokenizers and data that are used in tests and not shipped."""
    if not SHARED.is_dir():
        pytest.skip("../shared (real models, tokenizers and data) is not on this machine")
    return SHARED
