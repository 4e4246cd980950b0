"""Latents of endless composites, and runs that are trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pbe_model.checkpoints.load import read
from pbe_model.networks.vae import AutoencoderKL
from training.data.augment import SampleGeometry
from training.demo.recipes import RecipeConfig, endless
from training.loop import train
from training.stages.latents import LatentEncoder, LatentPool

from ..demo.pictures import write_objects
from ..runs import SMALL, changed, digest, logged, run_config, write_photos

CPU = torch.device("cpu")
NEW = {"data.source": "composites", "data.composites": {"reuse": 2, "pool": 3}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to compose, and photos to validate with."""
    return write_photos(write_objects(tmp_path_factory.mktemp("set")))


def pool(root: Path, first_stage: Path, batch_size: int = 4) -> LatentPool:
    start = "first_stage_model."
    vae = AutoencoderKL(SMALL.vae)
    tensors = read(first_stage).tensors
    vae.load_state_dict({name.removeprefix(start): value for name, value in tensors.items()})
    config = RecipeConfig(reuse=2, pool=40)
    size = SMALL.resolution
    recipes, textures = endless(root, config, SampleGeometry(), size=size, seed=0, device=CPU)
    return LatentPool(recipes, textures, LatentEncoder(vae, CPU, at_once=8), batch_size)


def test_latents_are_those_of_the_photos(root: Path, first_stage: Path) -> None:
    made = pool(root, first_stage)
    numbers = torch.tensor([33, 2, 33, 40])
    found = made(numbers)
    for row, number in enumerate(numbers.tolist()):
        layers, hole = made.recipes.photo(number)
        photo, _ = made.textures.draw(torch.from_numpy(layers)[None], made.recipes.size)
        hole_mask = torch.from_numpy(hole)[None, None].float() / 255
        wanted = made.encoder.encode(photo * 2 - 1, hole_mask)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name][row], value[0], rtol=0.02, atol=0.02)


def test_a_pool_that_starts_late_holds_the_same(root: Path, first_stage: Path) -> None:
    one, late = pool(root, first_stage), pool(root, first_stage)
    for first in range(0, 200, 8):
        one(torch.arange(first, first + 8))
    numbers = torch.arange(170, 200)
    for name, value in one(numbers).items():
        assert torch.equal(value, late(numbers)[name])


@pytest.mark.parametrize("stage", ["first_stage", "diffusion"])
def test_a_run_goes_on_where_it_stopped(
    root: Path, tmp_path: Path, first_stage: Path, stage: str
) -> None:
    init = first_stage if stage == "diffusion" else None
    options = {"checkpoint.every": 2, "loss.thumbnail_weight": 1.0, "loss.keep_weight": 0.1, **NEW}
    whole = run_config(root, tmp_path / "whole", init, steps=4, **options)
    parts = run_config(root, tmp_path / "parts", init, steps=2, **options)
    train(whole)
    train(parts)
    train(changed(parts, steps=4))
    assert digest(whole.out) == digest(parts.out)


def test_workers_change_nothing(root: Path, tmp_path: Path, first_stage: Path) -> None:
    alone = run_config(root, tmp_path / "alone", first_stage, **NEW)
    helped = run_config(root, tmp_path / "helped", first_stage, **NEW, **{"data.workers": 2})
    train(alone)
    train(helped)
    assert digest(alone.out) == digest(helped.out)


@pytest.mark.parametrize("stage", ["first_stage", "diffusion"])
def test_graphs_need_a_card(root: Path, tmp_path: Path, first_stage: Path, stage: str) -> None:
    init = first_stage if stage == "diffusion" else None
    with pytest.raises(ValueError, match="cuda_graphs needs a CUDA card"):
        train(run_config(root, tmp_path, init, cuda_graphs=True, **NEW))


def test_a_compiled_run_learns_the_same(
    root: Path, tmp_path: Path, first_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a device, but run by torch itself: making code for the CPU takes minutes."""
    compiled: list[nn.Module] = []

    def trace(module: nn.Module, **options: Any) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", trace)
    plain = run_config(root, tmp_path / "plain", first_stage, steps=2, **NEW)
    fast = run_config(root, tmp_path / "fast", first_stage, steps=2, compile=True, **NEW)
    train(plain)
    train(fast)
    assert len(compiled) > 5
    for one, two in zip(logged(plain.out), logged(fast.out), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
