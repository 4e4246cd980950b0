"""Encoded exemplars as files: the same tokens come back, and nothing else is taken for them."""

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pbe_model.checkpoints.exemplar_file import EncodedExemplar, load_exemplar, save_exemplar
from pbe_model.checkpoints.save import save_model

from ..small import SMALL, SMALL_ALL, noise, small_model

GOOD = {"pbe_exemplar": "1"}
TOKENS = {"positive": noise(2, 1, 24), "negative": noise(1, 1, 24, seed=1)}
EXEMPLAR = EncodedExemplar(TOKENS["positive"], TOKENS["negative"])


@pytest.mark.parametrize("config", [SMALL, SMALL_ALL], ids=["class token", "all tokens"])
def test_the_same_tokens_come_back(tmp_path, config):
    encoder = small_model(config).encoder
    with torch.inference_mode():  # as the host's nodes run; the vector is expanded, not copied
        positive = encoder(noise(3, 3, 16, 16))
        negative = encoder.unconditional(3)
        save_exemplar(tmp_path / "a.safetensors", EncodedExemplar(positive, negative, "mine.ckpt"))
    loaded = load_exemplar(tmp_path / "a.safetensors")
    assert torch.equal(loaded.positive, positive) and torch.equal(loaded.negative, negative)
    assert loaded.checkpoint == "mine.ckpt"
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "pbe_exemplar": "1",
            "tokens": str(encoder.num_tokens),
            "context_dim": "24",
            "checkpoint": "mine.ckpt",
        }
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_precision_is_saved_and_read_as_float32(tmp_path):
    path = tmp_path / "a.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in TOKENS.items()}
    save_exemplar(path, EncodedExemplar(half["positive"], half["negative"]))
    saved = load_exemplar(path)
    save_file(half, path, GOOD)
    for loaded in (saved, load_exemplar(path)):
        assert loaded.positive.dtype == torch.float32 and loaded.checkpoint == ""
        assert torch.equal(loaded.positive, half["positive"].float())


def test_what_was_loaded_stays_when_the_file_changes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_exemplar(path, EXEMPLAR)
    loaded = load_exemplar(path)
    with path.open("r+b") as file:  # in place, as a copying tool does it
        file.seek(-64, 2)
        file.write(bytes(64))
    assert torch.equal(loaded.positive, TOKENS["positive"])
    assert torch.equal(loaded.negative, TOKENS["negative"])


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (TOKENS, None, "holds no encoded exemplar; give a file that Save Exemplar wrote"),
        (TOKENS, {"pbe_exemplar": "2"}, "of version '2'.*version '1'; update"),
        ({"positive": noise(1, 1, 4)}, GOOD, "damaged .negative missing"),
        (TOKENS | {"positive": noise(2, 24)}, GOOD, r"positive is float32 of shape \(2, 24\)"),
        (TOKENS | {"negative": noise(1, 0, 24)}, GOOD, r"negative is float32 of shape \(1, 0"),
        (TOKENS | {"negative": torch.ones(1, 1, 24).int()}, GOOD, "negative is int32"),
        (TOKENS | {"negative": noise(1, 1, 16)}, GOOD, r"\(2, 1, 24\) and \(1, 1, 16\)"),
        (TOKENS | {"negative": noise(1, 5, 24)}, GOOD, r"\(2, 1, 24\) and \(1, 5, 24\)"),
        (TOKENS | {"negative": noise(3, 1, 24)}, GOOD, r"\(2, 1, 24\) and \(3, 1, 24\)"),
        (TOKENS | {"positive": noise(1, 1, 24) / 0}, GOOD, "positive holds NaN or infinite"),
    ],
)
def test_other_files_end_in_a_sentence_that_names_them(tmp_path, tensors, metadata, words):
    save_file(tensors, tmp_path / "odd.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"odd\.safetensors.*{words}"):
        load_exemplar(tmp_path / "odd.safetensors")


def test_a_checkpoint_is_no_exemplar(tmp_path):
    save_model(tmp_path / "model.safetensors", small_model())
    with pytest.raises(ValueError, match="holds no encoded exemplar"):
        load_exemplar(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, b"PK\x03\x04 no pickle is ever read", (2**40).to_bytes(8, "little") + b"{"],
    ids=["empty", "noise", "zip", "a header of a terabyte"],
)
def test_damaged_files_end_in_a_sentence(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.safetensors cannot be read as"):
        load_exemplar(path)


def test_a_truncated_file_ends_in_a_sentence(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_exemplar(path, EXEMPLAR)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as safetensors"):
        load_exemplar(path)


def test_what_cannot_be_saved_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    save_exemplar(path, EXEMPLAR)
    before = hashlib.sha256(path.read_bytes()).digest()
    broken = TOKENS["positive"].clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="positive holds NaN"):
        save_exemplar(path, EncodedExemplar(broken, TOKENS["negative"]))
    with pytest.raises(ValueError, match=r"do not match; save what one Exemplar Encoder made"):
        save_exemplar(path, EncodedExemplar(TOKENS["positive"], noise(1, 1, 16)))
    with pytest.raises(ValueError, match=r"cannot write .*nowhere"):
        save_exemplar(tmp_path / "nowhere/a.safetensors", EXEMPLAR)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.safetensors"]
