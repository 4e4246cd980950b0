"""Checkpoints of other tools: words in names, dictionaries around weights."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pbe_model import PaintByExample
from pbe_model.checkpoints.diffusers_layout import to_diffusers
from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import inspect, read, state_dict
from pbe_model.checkpoints.save import convert, save_diffusers, save_official
from pbe_model.checkpoints.wrappers import OFFICIAL, PARTS_OF_FOLDER, unwrap, without_words
from pbe_model.cli.main import main
from pbe_model.config import V1

from ..small import SMALL, noise, small_model

STATED = json.dumps(SMALL.to_dict())
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
WEIGHTS["image_encoder"] = "model"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return state_dict(small_model())


def same(path: Path, tensors: dict[str, Tensor], *, ema: bool = False) -> list[str]:
    """Checks that a file has these weights, and returns the notes about it."""
    file = read(path, ema=ema)
    assert file.tensors.keys() == tensors.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in tensors.items())
    return file.notes


def write(path: Path, outer: dict) -> Path:
    """A safetensors file of tensors, or whatever torch saves."""
    if path.suffix == ".safetensors":
        save_file({n: t.contiguous() for n, t in outer.items()}, path, {METADATA_KEY: STATED})
    else:
        torch.save({"state_dict": outer, METADATA_KEY: STATED}, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "model.module._orig_mod.",
        "_forward_module.net.",
        "_fsdp_wrapped_module.",
        "pipeline.pbe.",
        "state_dict.",
    ],
)
def test_what_stands_before_names_is_left_out(tmp_path, tensors, prefix, suffix):
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    wrapped[f"{prefix}betas"] = noise(3)  # a schedule's, which is dropped
    path = write(tmp_path / f"a{suffix}", wrapped)
    assert same(path, tensors) == [f"{prefix} left out of {len(tensors) + 1:,} names"]
    assert read(path).dropped == [f"{prefix}betas"]
    assert PaintByExample.from_checkpoint(path).config == SMALL


@pytest.mark.parametrize("part", ["unet", "vae", "encoder"])
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
def test_a_part_that_torch_wrapped_itself(tmp_path, tensors, part, wrap):
    model = small_model()
    setattr(model, part, wrap(getattr(model, part)))
    changed = {
        prefix + name: tensor
        for prefix, module in (
            ("model.diffusion_model.", model.unet),
            ("first_stage_model.", model.vae),
            ("", model.encoder),
        )
        for name, tensor in module.state_dict().items()
    }
    assert changed.keys() != tensors.keys()
    (note,) = same(write(tmp_path / "a.ckpt", changed), tensors)
    assert ("_orig_mod." if wrap is torch.compile else "module.") in note


def test_checkpointed_blocks_and_a_denoiser_without_model(tmp_path, tensors):
    """FSDP puts words into the middle of names; others strip one word too many."""
    changed = {
        name.replace("input_blocks.1.", "input_blocks.1._fsdp_wrapped_module.")
        .replace("middle_block.", "middle_block._checkpoint_wrapped_module.")
        .removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }
    same(write(tmp_path / "a.ckpt", changed), tensors)


def test_no_layer_is_called_like_a_wrapper():
    """So that nothing is left out of names that are whole."""
    with torch.device("meta"):
        official = state_dict(PaintByExample(V1))
    names = unwrap(official, OFFICIAL, "it")
    assert list(names.tensors) == list(official) and not names.notes and not names.dropped
    for name, tensor in to_diffusers(official, V1).items():
        part, _, own = name.partition(".")
        found = unwrap({own: tensor}, PARTS_OF_FOLDER[part], "it")
        assert list(found.tensors) == [own] == [without_words(own)]


ENTRIES: dict[str, Callable[[dict], dict]] = {
    "flat": lambda held: held,
    "state_dict": lambda held: {"state_dict": held, "epoch": 3, "loops": {"fit": {"a": {}}}},
    "model": lambda held: {"model": held, "optimizer": {"state": {0: {"exp_avg": noise(3)}}}},
    "module": lambda held: {"module": held, "buffer_names": ["a"], "ds_config": {"train": 1}},
    "checkpoint > model": lambda held: {"checkpoint": {"model": held}, "args": {"lr": 1.0}},
    "model_state_dict": lambda held: {
        "model_state_dict": {f"module.{n}": t for n, t in held.items()},
        "other": {"x": noise(2)},
    },
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_dictionaries_around_the_weights(tmp_path, tensors, entry):
    torch.save({**ENTRIES[entry](tensors), METADATA_KEY: STATED}, tmp_path / "a.pt")
    notes = same(tmp_path / "a.pt", tensors)
    usual = entry in ("flat", "state_dict")
    assert (notes == []) if usual else (notes[0] == f"weights taken from the entry {entry}")
    assert PaintByExample.from_checkpoint(tmp_path / "a.pt").config == SMALL


@pytest.mark.parametrize("average", ["ema", "model_ema", "ema_state_dict", "averaged_model"])
def test_of_an_average_and_the_last_weights_the_last_are_taken(tmp_path, tensors, average):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    path = tmp_path / "a.pt"
    torch.save({average: other, "model": tensors, METADATA_KEY: STATED}, path)
    assert same(path, tensors) == ["weights taken from the entry model"]
    assert same(path, other, ema=True) == [f"weights taken from the entry {average}"]
    torch.save({average: other}, path)
    same(path, other)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_average_behind_its_own_prefix(tmp_path, tensors, suffix):
    other = {f"ema_model.module.{name}": tensor + 1 for name, tensor in tensors.items()}
    plain = {f"model.{name}": tensor for name, tensor in tensors.items()}
    path = write(tmp_path / f"a{suffix}", plain | other)
    same(path, tensors)
    assert sorted(read(path).dropped) == sorted(other)
    same(path, {name: tensor + 1 for name, tensor in tensors.items()}, ema=True)


def test_two_models_in_one_file_are_not_guessed_at(tmp_path, tensors):
    two = {f"{p}.{n}": t for n, t in tensors.items() for p in ("student", "teacher")}
    with pytest.raises(ValueError, match=r"more than once, behind student\. and teacher\."):
        read(write(tmp_path / "a.ckpt", two))
    torch.save({"student": tensors, "teacher": tensors}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="several models, as student and teacher; keep one"):
        read(tmp_path / "b.ckpt")
    twice = dict(tensors)
    name = next(n for n in tensors if n.startswith("model.diffusion_model."))
    twice[name.removeprefix("model.")] = tensors[name]
    with pytest.raises(
        ValueError, match=r"holds model.diffusion_model.* twice, also as diffusion_"
    ):
        read(write(tmp_path / "c.ckpt", twice))


def test_a_process_s_share_of_a_model_says_how_to_put_them_together(tmp_path, tensors):
    empty = {name: torch.empty(0) for name in tensors}
    torch.save({"module": empty, "ds_version": "0.15"}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"each process a share; .*zero_to_fp32.py"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "unet.", "module.net."])
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_parts_of_a_folder(tmp_path, tensors, prefix, pickled):
    folder = tmp_path / "folder"
    save_diffusers(folder, small_model())
    for part, stem in WEIGHTS.items():
        file = folder / part / f"{stem}.safetensors"
        wrapped = {prefix + name: tensor for name, tensor in load_file(file).items()}
        if pickled:
            file.unlink()
            torch.save({"module": wrapped}, file.with_suffix(".bin"))
        else:
            save_file(wrapped, file)
    notes = same(folder, tensors)
    found = [note for note in notes if f": {prefix} left out of" in note]
    assert len(found) == len(WEIGHTS)
    assert ("unet: weights taken from the entry module" in notes) is pickled
    assert f"unet.{prefix}conv_in.weight" in read(folder).renamed
    assert not inspect(folder).missing and not inspect(folder).unexpected


def test_what_was_left_out_is_told(tmp_path, tensors, capsys, caplog):
    path = write(tmp_path / "a.ckpt", {f"module.{n}": t for n, t in tensors.items()})
    says = f"module. left out of {len(tensors):,} names"
    with caplog.at_level(logging.INFO):
        PaintByExample.from_checkpoint(path)
    assert any(f"a.ckpt: {says}" in record.message for record in caplog.records)
    assert main(["inspect", str(path)]) == 0
    assert says in capsys.readouterr().out
    assert main(["convert", str(path), str(tmp_path / "b.ckpt"), "--to", "official"]) == 0
    said = capsys.readouterr().out
    assert says in said and f"{len(tensors):,} names changed" in said
    same(tmp_path / "b.ckpt", tensors)
    assert main(["inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [says]


def test_a_whole_file_says_nothing(tmp_path, tensors, caplog):
    save_official(tmp_path / "a.ckpt", small_model())
    with caplog.at_level(logging.INFO):
        assert same(tmp_path / "a.ckpt", tensors) == []
    assert not caplog.records


def test_a_start_of_a_training_may_be_wrapped_too(tmp_path, tensors):
    """Stable Diffusion's layout: four channels, a text encoder."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    text = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
    held = {n: t for n, t in tensors.items() if n.startswith(("model.diff", "first_stage"))}
    held = held | {first: tensors[first][:, :4].clone(), text: noise(3, 4)}
    path = write(tmp_path / "a.ckpt", {f"module.{n}": t for n, t in held.items()})
    report = convert(path, tmp_path / "b.safetensors", layout="safetensors")
    assert not [n for n in report.missing if not n.startswith(("cond", "proj", "learn"))]
    assert read(tmp_path / "b.safetensors").tensors[first].shape[1] == 9
