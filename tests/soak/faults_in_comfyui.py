"""Faults in a real ComfyUI: after each, the host paints what it painted before.

`make soak` runs it; PROMPTS is the number of prompts in a row (200 unless told).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.save import save_model

from ..nodes.conftest import REPOSITORY
from ..nodes.host import Host, failure, find_host
from ..nodes.test_endurance_in_comfyui import resident
from ..nodes.test_in_comfyui import graph

pytestmark = pytest.mark.host

PROMPTS = int(os.environ.get("PROMPTS", "200"))
STEPS = 6
NAMES = ("one.safetensors", "two.safetensors")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A ComfyUI with the pack and the one that makes faults, and two models."""
    found = find_host()
    if found is None:
        pytest.skip("no ComfyUI found, see tests/nodes/conftest.py")
    folder = tmp_path_factory.mktemp("faults")
    (folder / "packs").mkdir()
    (folder / "packs/faults").symlink_to(Path(__file__).with_name("fault_pack"))
    paths = folder / "paths.yaml"
    paths.write_text(f"faults:\n  custom_nodes: {folder / 'packs'}\n")
    extra = ("--extra-model-paths-config", str(paths))
    with Host.start(*found, REPOSITORY, folder / "base", extra_args=extra) as running:
        models = running.base / "models/paint_by_example"
        models.mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(NAMES):
            write_model(models / name, seed)
        yield running


def write_model(path: Path, seed: int) -> None:
    """A tiny model with random weights; it appears whole, as `save_model` promises."""
    torch.manual_seed(seed)
    save_model(path, PaintByExample(TINY).eval())


def models_of(host: Host) -> Path:
    return host.base / "models/paint_by_example"


def painted(host: Host, name: str = NAMES[0], seed: int = 1, **options) -> bytes:
    """A picture; the host has no result of it in its cache, as another seed came before."""
    options = {"steps": STEPS, **options}
    other = host.run(graph(f"paint_by_example/{name}", seed=seed + 1, **options))
    assert other.error is None, other.error_text
    run = host.run(graph(f"paint_by_example/{name}", seed=seed, **options))
    assert run.error is None, run.error_text
    return host.images(run, "5")[0].tobytes()


def fail(host: Host, place: str, after: int = 0, times: int = 1) -> int:
    """Ask for a fault, or for none with 0 times; returns how many were still due there."""
    body = json.dumps({"place": place, "after": after, "times": times}).encode()
    request = urllib.request.Request(f"http://{host.address}/faults", data=body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["left"]


def test_cancelled_at_every_step(host: Host):
    before = painted(host)
    for step in range(1, STEPS + 1):
        prompt = graph(f"paint_by_example/{NAMES[0]}", seed=50 + step, steps=STEPS, resolution=128)

        def cancel(node: str, value: int, top: int, step: int = step) -> None:
            if node == "4" and value == step:
                host.interrupt()

        run = host.run(prompt, on_progress=cancel)
        assert run.error is None
        # The last step may be over, and its picture decoded, before the host hears of it.
        assert run.interrupted or step >= STEPS - 1
        assert painted(host) == before, f"after a run that was cancelled at step {step}"


@pytest.mark.parametrize("after", range(STEPS))
def test_out_of_memory_at_any_step(host: Host, after: int):
    before = painted(host)
    fail(host, "sampling", after)
    run = host.run(graph(f"paint_by_example/{NAMES[0]}", seed=80 + after, steps=STEPS))
    assert run.error is not None and "out of memory" in run.error_text.lower()
    assert fail(host, "sampling", 0, 0) == 0, "the fault has not come"
    assert painted(host) == before


@pytest.mark.parametrize("place", ["encode", "decode"])
def test_out_of_memory_in_the_first_stage(host: Host, place: str):
    """Once: the host goes on in tiles. Without end: an error, and the next prompt runs."""
    before = painted(host)
    fail(host, place)
    run = host.run(graph(f"paint_by_example/{NAMES[0]}", seed=90, steps=STEPS))
    assert run.error is None, run.error_text
    assert fail(host, place, 0, 1000) == 0, "the fault has not come"
    run = host.run(graph(f"paint_by_example/{NAMES[0]}", seed=91, steps=STEPS))
    assert run.error is not None and "out of memory" in run.error_text.lower()
    fail(host, place, 0, 0)
    assert painted(host) == before


def test_a_model_file_that_is_replaced_while_it_is_loaded(host: Host):
    one, two = (painted(host, name) for name in NAMES)
    assert one != two
    place = models_of(host) / "changing.safetensors"
    for number, expected in enumerate((one, two, one, two)):
        write_model(place, number % 2)
        os.utime(place, (10**9 + number, 10**9 + number))  # as a file is that was downloaded
        assert painted(host, place.name) == expected


@pytest.mark.parametrize("left", [b"\xff" * 10_000, b"", None], ids=["garbage", "empty", "nothing"])
def test_a_model_file_that_is_exchanged_in_the_middle_of_a_run(host: Host, left: bytes | None):
    """As downloads and editors do it, by another file of the name. The run has what it loaded.

    To write into a file that is mapped is another matter, here as with ComfyUI's own loaders.
    """
    before = painted(host)
    place = models_of(host) / "shaky.safetensors"
    shutil.copy(models_of(host) / NAMES[0], place)
    exchanged = threading.Event()

    def during(node: str, value: int, top: int) -> None:
        if node == "4" and value == 2 and not exchanged.is_set():
            exchanged.set()
            if left is None:
                place.unlink()
            else:
                other = place.with_suffix(".download")
                other.write_bytes(left)
                other.replace(place)

    name = f"paint_by_example/{place.name}"
    run = host.run(graph(name, seed=3, steps=STEPS), on_progress=during)
    assert exchanged.is_set() and host.process.poll() is None
    assert run.error is None, run.error_text
    assert failure(host, graph(name, seed=4, steps=STEPS)), "it was loaded again"
    assert painted(host) == before


def test_two_prompts_at_once(host: Host):
    """From two pages; the host has one queue, and each page gets its own pictures."""
    expected = {name: painted(host, name, seed=5) for name in NAMES}
    found: dict[str, list[bytes]] = {name: [] for name in NAMES}

    def page(name: str) -> None:
        mine = Host(host.process, host.base, 0, host.log_file)
        mine.address, mine.client_id = host.address, uuid.uuid4().hex
        for _ in range(3):
            found[name].append(painted(mine, name, seed=5))

    threads = [threading.Thread(target=page, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    for name in NAMES:
        assert found[name] == [expected[name]] * 3


def test_many_prompts_in_a_row_with_memory_flat(host: Host):
    def one(seed: int) -> None:
        run = host.run(graph(f"paint_by_example/{NAMES[seed % 2]}", seed=1000 + seed, steps=2))
        assert run.error is None, run.error_text

    for seed in range(20):  # until caches and allocators have what they keep
        one(seed)
    before = resident(host)
    for seed in range(20, 20 + PROMPTS):
        one(seed)
    grown = resident(host) - before
    print(f"{PROMPTS} prompts: {grown / 1e6:+.1f} MB of {before / 1e6:.0f} MB")
    assert grown < 50e6
