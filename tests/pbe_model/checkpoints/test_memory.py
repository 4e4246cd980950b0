"""Large files are mapped and streamed: what loading and converting takes, in fresh processes."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pbe_model import PaintByExample
from pbe_model.checkpoints import save

from ... import forked
from ..small import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak"),
]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model of 600 MB: the small one with a wide image tower."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    config = replace(SMALL, exemplar=replace(SMALL.exemplar, hidden_size=1024, num_heads=16))
    save.save_model(path, PaintByExample(config))
    assert path.stat().st_size > 5e8
    return path


def taken(action: Callable[..., object], *arguments: object) -> int:
    """Bytes that the peak of a process grows by."""
    done = forked.run(_print_growth, action, arguments)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def _print_growth(action: Callable[..., object], arguments: tuple[object, ...]) -> None:
    before = _peak()
    action(*arguments)
    print(_peak() - before)


def _peak() -> int:
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _load_and_use(path: Path) -> None:
    for parameter in PaintByExample.from_checkpoint(path).parameters():
        parameter.sum()


def _convert(source: Path, out: Path, layout: str, dtype: str | None) -> None:
    kind = getattr(torch, dtype) if dtype else None
    save.convert(source, out, layout=layout, dtype=kind)


def test_loading_maps_the_file(large):
    size = large.stat().st_size
    assert taken(PaintByExample.from_checkpoint, large) < 0.5 * size
    assert 0.9 * size < taken(_load_and_use, large) < 1.15 * size


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("layout", ["safetensors", "official", "diffusers"])
def test_converting_streams(large, tmp_path, layout, dtype):
    out = tmp_path / {"safetensors": "out.safetensors"}.get(layout, "out")
    peak = taken(_convert, large, out, layout, dtype)
    files = out.rglob("*") if out.is_dir() else [out]
    assert peak < 1.3 * sum(file.stat().st_size for file in files if file.is_file())
