"""One ComfyUI for all tests of a process, started when the first asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .browser import Browser, find_browser
from .host import Host, find_host

REPOSITORY = Path(__file__).resolve().parents[2]

HOW_TO_GET_IT = (
    "no ComfyUI found: clone github.com/comfyanonymous/ComfyUI to ~/comfy/ComfyUI (or set "
    "COMFYUI_PATH), install its requirements into .venv there (or set COMFYUI_PYTHON)"
)


@pytest.fixture(scope="session")
def comfyui() -> tuple[Path, Path]:
    """A ComfyUI's folder and its Python, not running; skips where there is none."""
    found = find_host()
    if found is None:
        pytest.skip(HOW_TO_GET_IT)
    return found


@pytest.fixture(scope="session")
def browser() -> Browser:
    """The browser for ComfyUI's page; skips where there is none."""
    found = find_browser()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def host(comfyui: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A running ComfyUI with this repository as a node pack."""
    with Host.start(*comfyui, REPOSITORY, tmp_path_factory.mktemp("comfyui") / "base") as running:
        yield running
