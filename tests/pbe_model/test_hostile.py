"""Hostile files end in a sentence: soon, in little memory, and with nothing run or written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import hostile

SECONDS, BYTES = 5, 10**9  # of processor time: other work on the machine does not count

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict:
    """What a fresh process makes of each file: its memory is not ours."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [str(make(folder)) for make in hostile.FILES]
    done = subprocess.run(
        [sys.executable, "-m", "tests.pbe_model.hostile", *paths],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    assert not (folder / "owned").exists()
    return dict(zip(hostile.FILES, lines, strict=True))


@pytest.mark.parametrize("make", hostile.FILES, ids=lambda make: make.__name__)
def test_a_hostile_file_ends_in_a_sentence(outcomes, make):
    outcome = outcomes[make]
    assert outcome["code"] == 2
    assert outcome["said"].startswith("pbe: ") and outcome["said"].count("\n") == 1
    assert hostile.FILES[make] in outcome["said"]
    assert outcome["seconds"] < SECONDS
    assert outcome["peak"] < BYTES
    assert not outcome["written"]
