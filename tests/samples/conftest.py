"""Every test of this folder has one thread."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def use_one_thread(one_thread: None) -> None:
    """See tests/conftest.py."""
