"""The graph with which `benchmarks.gpu` compares peaks of memory, with tiny models and no card."""

import uuid

import pytest
import torch

from benchmarks.gpu import host_memory
from benchmarks.gpu.comfyui import ComfyUI, HostError
from pbe_model import TINY

from .host import Host

pytestmark = [pytest.mark.host, pytest.mark.slow]


@pytest.fixture
def client(host: Host, monkeypatch: pytest.MonkeyPatch) -> ComfyUI:
    """The benchmark's client of the tests' server, which has its files."""
    monkeypatch.setattr(host_memory, "V1", TINY)
    made = host.base / "made"
    host_memory.write_models(made, torch.device("cpu"))
    for file in made.glob("*/*.safetensors"):
        there = host.base / "models" / file.parent.name / file.name
        there.parent.mkdir(parents=True, exist_ok=True)
        file.rename(there)
    client = object.__new__(ComfyUI)
    client.address, client.process, client._log = host.address, host.process, host.log_file
    client.client = uuid.uuid4().hex
    return client


def test_both_graphs_run_but_for_the_size_that_the_host_needs(client: ComfyUI):
    ran = client.run(host_memory.graph(True, steps=3, side=64), watch=True)
    assert ran.steps == 3 and ran.held > 2**20
    client.free()
    again = client.run(host_memory.graph(True, steps=3, side=64))
    assert again.steps == 3 and again.held == 0  # not from the cache, and not watched
    # It tells SD 1.5 by its width, which no tiny model has.
    with pytest.raises(HostError, match="Could not detect model type"):
        client.run(host_memory.graph(False, steps=3, side=64))


def test_room_is_left_for_half_of_the_weights():
    flag, gigabytes = host_memory.reserved_for_others(24 * 2**30)
    assert flag == "--reserve-vram" and float(gigabytes) == pytest.approx(22.4)
