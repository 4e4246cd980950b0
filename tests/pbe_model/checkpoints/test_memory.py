"""Large files are mapped and streamed: what loading and converting takes, in fresh processes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pbe_model import PaintByExample
from pbe_model.checkpoints.save import save_model

from ..small import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak"),
]

PROGRAM = """
import re, sys, torch
from transformers import CLIPVisionModel  # imported with the first model, and not to be counted
from pbe_model import PaintByExample
from pbe_model.checkpoints import load, save

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

before = peak()
{action}
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model of 600 MB: the small one with a wide image tower."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    config = replace(SMALL, exemplar=replace(SMALL.exemplar, hidden_size=1024, num_heads=16))
    save_model(path, PaintByExample(config))
    assert path.stat().st_size > 5e8
    return path


def taken(action: str) -> int:
    """Bytes that the peak of a process grows by."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(action=action)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_loading_maps_the_file(large):
    size = large.stat().st_size
    assert taken(f"PaintByExample.from_checkpoint({str(large)!r})") < 0.5 * size
    used = (
        f"m = PaintByExample.from_checkpoint({str(large)!r}); sum(p.sum() for p in m.parameters())"
    )
    assert 0.9 * size < taken(used) < 1.15 * size


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("layout", ["safetensors", "official", "diffusers"])
def test_converting_streams(large, tmp_path, layout, dtype):
    out = tmp_path / {"safetensors": "out.safetensors"}.get(layout, "out")
    kind = f"torch.{dtype}" if dtype else None
    action = f"save.convert({str(large)!r}, {str(out)!r}, layout={layout!r}, dtype={kind})"
    peak = taken(action)
    files = out.rglob("*") if out.is_dir() else [out]
    assert peak < 1.3 * sum(file.stat().st_size for file in files if file.is_file())
