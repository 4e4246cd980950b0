"""What a long evening does to a real ComfyUI: cancelled runs, and models in turn."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.save import save_model

from .host import Host
from .test_in_comfyui import graph

pytestmark = [pytest.mark.host, pytest.mark.slow]

NAMES = ("one.safetensors", "two.safetensors")


@pytest.fixture(scope="module", autouse=True)
def checkpoints(host: Host) -> None:
    """Two tiny models with random weights in the host's model folder."""
    folder = host.base / "models/paint_by_example"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        save_model(folder / name, PaintByExample(TINY).eval())


def painted(host: Host, name: str = NAMES[0], **sampler) -> np.ndarray:
    run = host.run(graph(f"paint_by_example/{name}", **sampler))
    assert run.error is None, run.error_text
    return host.images(run, "5")[0]


def test_cancel_ends_within_two_steps_and_the_next_run_is_unharmed(host: Host):
    before = painted(host, seed=1)

    def cancel(node: str, value: int, top: int) -> None:
        if value == 2:
            host.interrupt()

    # Steps as slow as those of a large model, so that they can be counted.
    prompt = graph(f"paint_by_example/{NAMES[0]}", seed=2, steps=30, resolution=256)
    run = host.run(prompt, on_progress=cancel)
    assert run.interrupted and run.error is None
    assert run.progress[-1][1] <= 4
    assert (painted(host, seed=1) == before).all()


def resident(host: Host) -> int:
    """Bytes of the host's process."""
    found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{host.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the size")
def test_models_in_turn_do_not_leak(host: Host):
    for seed in range(6):  # until its caches and allocators have what they keep
        painted(host, NAMES[seed % 2], seed=100 + seed)
    before = resident(host)
    for seed in range(20):
        painted(host, NAMES[seed % 2], seed=200 + seed)
    assert resident(host) - before < 50e6
