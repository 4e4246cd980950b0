"""Every test here ends soon; and photos to annotate."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .files import picture


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A reader that waits for a pipe, or for a bomb, fails instead of hanging."""

    def late(*_: object) -> None:
        raise AssertionError("it took longer than 30 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)  # of a machine that does other work too
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    picture(tmp_path / "images/a.png")
    return tmp_path / "images"
