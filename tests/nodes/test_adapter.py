"""Runs `adapter_checks.py` in the host's own interpreter, one test for each check."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import HOW_TO_GET_IT
from .host import find_host

pytestmark = [pytest.mark.host, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("adapter_checks.py")
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    """The outcome of every check."""
    found = find_host()
    if found is None:
        pytest.skip(HOW_TO_GET_IT)
    comfyui, python = found
    process = subprocess.run(
        [str(python), str(SCRIPT), str(comfyui), str(ROOT)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_adapter(results: dict[str, str | None], check: str):
    assert results[check] is None, results[check]
