"""CLIP's image tower in the shapes in which transformers keeps it, and what stands beside it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from pbe_model import PaintByExample
from pbe_model.checkpoints.clip_tower import load_tower
from pbe_model.networks.exemplar_encoder import ExemplarEncoder

from ..small import SMALL, noise, randomise, relative_error, small_model

SIZES = SMALL.exemplar
VISION = {
    "hidden_size": SIZES.hidden_size,
    "intermediate_size": 4 * SIZES.hidden_size,
    "num_hidden_layers": SIZES.num_layers,
    "num_attention_heads": SIZES.num_heads,
    "image_size": SIZES.image_size,
    "patch_size": SIZES.patch_size,
    "projection_dim": 8,
}


def vision(**changes) -> CLIPVisionModel:
    peer = CLIPVisionModel(CLIPVisionConfig(**{**VISION, **changes}))
    randomise(peer, seed=7)
    return peer.eval()


def both_towers() -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=7,
    )  # fmt: skip
    peer = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=VISION, projection_dim=8))
    randomise(peer, seed=7)
    return peer.eval()


def projecting() -> CLIPVisionModelWithProjection:
    peer = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
    randomise(peer, seed=7)
    return peer.eval()


def as_published(path: Path) -> Path:
    """The names of the published files: below `vision_model.`, with the buffer of positions."""
    tensors = {
        "vision_model." + name.removeprefix("vision_model."): tensor
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def pooled(peer: torch.nn.Module, pixels: Tensor) -> Tensor:
    tower = getattr(peer, "vision_model", peer)
    with torch.no_grad():
        return tower(pixel_values=pixels).pooler_output


def check(model: PaintByExample, peer: torch.nn.Module) -> None:
    pixels = noise(2, 3, SIZES.image_size, SIZES.image_size)
    ours = pooled(model.encoder.cond_stage_model.transformer, pixels)
    assert relative_error(ours, pooled(peer, pixels)) < 1e-5


@pytest.mark.parametrize(
    ("make", "ignored"),
    [
        (vision, 0),
        (projecting, {"visual_projection.weight"}),
        (both_towers, {"visual_projection.weight", "text_projection.weight", "logit_scale"}),
    ],
)
def test_a_folder_of_transformers(tmp_path, make, ignored):
    peer, model = make(), small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peer.save_pretrained(tmp_path)
    left_out = load_tower(model, tmp_path)
    assert {n for n in left_out if not n.startswith("text_model.")} == (ignored or set())
    assert any(n.startswith("text_model.") for n in left_out) == (make is both_towers)
    check(model, peer)
    tower = "encoder.cond_stage_model.transformer."
    for name, tensor in model.state_dict().items():
        assert name.startswith(tower) or torch.equal(tensor, before[name]), name


def test_published_names_with_positions(tmp_path):
    peer, model = vision(), small_model()
    peer.save_pretrained(tmp_path)
    assert load_tower(model, as_published(tmp_path)) == ["vision_model.embeddings.position_ids"]
    check(model, peer)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_single_file(tmp_path, suffix):
    peer, model, path = both_towers(), small_model(), tmp_path / f"clip{suffix}"
    if suffix == ".bin":
        torch.save(peer.state_dict(), path)
    else:
        save_file(peer.state_dict(), path)
    load_tower(model, path)
    check(model, peer)


def test_half_precision_becomes_the_model_s_own(tmp_path):
    peer, model = vision().half(), small_model()
    peer.save_pretrained(tmp_path)
    load_tower(model, tmp_path)
    assert {p.dtype for p in model.encoder.parameters()} == {torch.float32}
    check(model, peer.float())


def test_what_is_no_such_tower_is_refused(tmp_path):
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    narrow = {"hidden_size": 32, "intermediate_size": 128}
    wrong = {
        "of another shape are .*width 64 with 9 layers and patches of 8 pixels": narrow,
        "unexpected.*encoder.layers.9": {"num_hidden_layers": 10},
        "embeddings.position_embedding.weight": {"image_size": 32},
        "has hidden_act 'gelu' and this model's image tower 'quick_gelu'": {"hidden_act": "gelu"},
        "has num_attention_heads 2": {"num_attention_heads": 2},
    }
    for number, (message, changes) in enumerate(wrong.items()):
        vision(**changes).save_pretrained(tmp_path / str(number))
        with pytest.raises(ValueError, match=message):
            load_tower(model, tmp_path / str(number))
    lacking = vision().state_dict()
    lacking.pop(next(name for name in lacking if "layers.3" in name))
    save_file(lacking, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"missing.*layers\.3.*\(1\); give CLIP's of width 64"):
        load_tower(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no image tower at"):
        load_tower(model, tmp_path / "none.safetensors")
    (tmp_path / "0/config.json").write_text(json.dumps({"vision_config": 3}))
    with pytest.raises(ValueError, match=r"vision_config in its config\.json is not a JSON object"):
        load_tower(model, tmp_path / "0")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_stands_beside_the_tower_starts_as_in_the_official_code():
    """There its layers (GLIDE's) are torch's own, and the learnable vector is drawn."""
    torch.manual_seed(0)
    encoder = ExemplarEncoder(SIZES, SMALL.unet.context_dim)
    embedder = encoder.cond_stage_model
    linear = 0
    for module in [*embedder.mapper.modules(), encoder.proj_out, embedder.final_ln]:
        if isinstance(module, torch.nn.Linear):
            linear += 1
            bound = module.in_features**-0.5
            for drawn in (module.weight, module.bias):
                assert drawn.abs().max() <= bound
                # Uniform in both directions: its deviation is the bound over the root of three.
                expected = pytest.approx(bound * 3**-0.5, rel=4 * (drawn.numel() * 1.25) ** -0.5)
                assert drawn.square().mean().sqrt().item() == expected
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert linear == 4 * SIZES.mapper_layers + 1
    drawn = ExemplarEncoder(SIZES, 4096).learnable_vector
    assert drawn.mean().abs() < 4 * drawn.numel() ** -0.5
    assert drawn.std().item() == pytest.approx(1, abs=4 * (2 * drawn.numel()) ** -0.5)
