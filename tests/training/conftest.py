"""Fixtures of training's tests: the small model in the place of `tiny`, photos, a first stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pbe_model import PaintByExample
from pbe_model.checkpoints import save as saving
from pbe_model.config import CONFIGS

from .runs import SMALL, randomise, write_pairs, write_photos


@pytest.fixture(autouse=True)
def small_model_named_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(CONFIGS, "tiny", SMALL)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with random weights, as `pbe-train export` writes one."""
    model = PaintByExample(SMALL)
    randomise(model.vae)
    path = tmp_path_factory.mktemp("first_stage") / "first_stage.safetensors"
    saving.save_model(path, model, parts=("vae",), metadata={"training": {"steps": 0}})
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with random weights."""
    torch.manual_seed(0)
    model = PaintByExample(SMALL)
    randomise(model)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    saving.save_model(path, model)
    return path
