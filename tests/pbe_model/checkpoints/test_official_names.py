"""Names in the official checkpoint: what they are mapped to, and that they have one home."""

import ast
from pathlib import Path

import pytest

import pbe_model
from pbe_model.checkpoints import official_names
from pbe_model.checkpoints.official_names import average_of, canonical, is_derived

POSITIONS = "embeddings.position_ids"


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("cond_stage_model.transformer.pre_layrnorm.bias",
         "cond_stage_model.transformer.vision_model.pre_layrnorm.bias"),
        ("cond_stage_model.transformer.vision_model.pre_layrnorm.bias",
         "cond_stage_model.transformer.vision_model.pre_layrnorm.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias",
         "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        ("first_stage_model.quant_conv.bias", "first_stage_model.quant_conv.bias"),
    ],
)  # fmt: skip
def test_the_tower_is_below_vision_model(name, official):
    assert canonical(name) == official


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("alphas_cumprod_prev", True),
        ("posterior_mean_coef1", True),
        ("scale_factor", True),
        (f"cond_stage_model.transformer.vision_model.{POSITIONS}", True),
        (f"cond_stage_model.transformer.{POSITIONS}", True),
        (f"image_encoder.model.vision_model.{POSITIONS}", True),
        ("model_ema.diffusion_modelout2weight", True),
        ("learnable_vector", False),
        ("proj_out.bias", False),
        ("first_stage_model.betas", False),
        (f"cond_stage_model.transformer.text_model.{POSITIONS}", False),
    ],
)
def test_what_a_model_does_not_need(name, derived):
    assert is_derived(name) is derived


def test_moving_average():
    assert average_of("model.diffusion_model.out.2.bias") == "model_ema.diffusion_modelout2bias"


def test_prefixes_stand_in_one_file():
    names = ("model.diffusion_model", "first_stage_model", "cond_stage_model", "model_ema")
    package = Path(pbe_model.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        found += [
            path.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in docstrings
            if isinstance(node.value, str) and any(name in node.value for name in names)
        ]
    assert set(found) == {Path(official_names.__file__).name}
