"""What all tests share: the order of their files."""

from __future__ import annotations

import pytest

LONGEST = ("test_surviving.py",)
"""Minutes each: begun last, one process would work on it while the others have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; processes take files in this order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
