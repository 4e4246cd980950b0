"""One ComfyUI for all tests of a process, started when the first asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .host import Host, find_host

REPOSITORY = Path(__file__).resolve().parents[2]

HOW_TO_GET_IT = (
    "no ComfyUI found: clone github.com/comfyanonymous/ComfyUI to ~/comfy/ComfyUI (or set "
    "COMFYUI_PATH), install its requirements into .venv there (or set COMFYUI_PYTHON)"
)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A running ComfyUI with this repository as a node pack; skips where there is none."""
    found = find_host()
    if found is None:
        pytest.skip(HOW_TO_GET_IT)
    with Host.start(*found, REPOSITORY, tmp_path_factory.mktemp("comfyui") / "base") as running:
        yield running
