"""Adapters that PEFT wrote for diffusers' denoiser, held to what PEFT itself makes of them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from pbe_model import PaintByExample
from pbe_model.checkpoints.adapter_convert import convert_adapter
from pbe_model.checkpoints.diffusers_layout import to_diffusers
from pbe_model.checkpoints.load import state_dict
from pbe_model.checkpoints.lora import apply_lora

from ..peers import peer_unet
from ..small import SMALL, noise, relative_error, small_model

LINEAR = ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "time_emb_proj"]
EVERYWHERE = [*LINEAR, "proj_in", "conv1", "conv_shortcut", "conv_in", "downsamplers.0.conv"]

CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=EVERYWHERE),
    "rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=EVERYWHERE),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=EVERYWHERE,
        rank_pattern={"attn1.to_q": 2, "conv_in": 3},
        alpha_pattern={"^mid_block.attentions.0.proj_in": 5, "to_v": 1.5},
    ),
    "bias": LoraConfig(r=4, lora_alpha=6, lora_bias=True, target_modules=["to_out.0", "conv1"]),
    "dora": LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=EVERYWHERE),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=EVERYWHERE),
    "loha with cores": LoHaConfig(
        r=3, alpha=5, use_effective_conv2d=True, target_modules=EVERYWHERE
    ),
    "lokr": LoKrConfig(r=3, alpha=5, target_modules=EVERYWHERE),
    "lokr of halves": LoKrConfig(r=1, alpha=2, decompose_both=True, target_modules=EVERYWHERE),
    "lokr with cores": LoKrConfig(
        r=3, alpha=5, use_effective_conv2d=True, target_modules=EVERYWHERE
    ),
}


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    """The small model's denoiser under diffusers' names."""
    named = to_diffusers(state_dict(small_model()), SMALL)
    return {n.removeprefix("unet."): t for n, t in named.items() if n.startswith("unet.")}


def trained(base: dict[str, Tensor], config):
    """PEFT's model with random adapters, none at its start."""
    unet = peer_unet()
    unet.load_state_dict(base)
    model = get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name or "hada_" in name or "lokr_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def merged(model) -> dict[str, Tensor]:
    return model.merge_and_unload().state_dict()


def agree(model: PaintByExample, expected: dict[str, Tensor], base: dict[str, Tensor]) -> int:
    """Checks every weight of the denoiser, and returns how many have changed."""
    named = to_diffusers(state_dict(model), SMALL)
    changes = 0
    for name, tensor in expected.items():
        assert relative_error(named[f"unet.{name}"], tensor) < 1e-5, name
        changes += not torch.equal(tensor, base[name])
    return changes


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_peft_s_makes_what_peft_makes_of_it(tmp_path, base, kind):
    theirs = trained(base, CONFIGS[kind])
    theirs.save_pretrained(tmp_path)
    model = small_model()
    applied = apply_lora(model, tmp_path)
    assert applied.complete and applied.path == tmp_path / "adapter_model.safetensors"
    expected = merged(theirs)
    changes = agree(model, expected, base)
    assert changes >= len(applied.layers) > 5
    out = tmp_path / "out.safetensors"
    done = convert_adapter(tmp_path / "adapter_model.safetensors", out)
    assert done.layers == len(applied.layers) and not done.unknown
    assert all(name.startswith("lora_unet_") for name in load_file(out))
    same = small_model()
    assert apply_lora(same, out).complete
    agree(same, expected, base)


def test_diffusers_own_files_of_today_and_before(tmp_path, base):
    """Names with `lora_A`, with `lora.down`, and of attention processors; metadata or none."""
    theirs = trained(base, CONFIGS["lora"])
    state = get_peft_model_state_dict(theirs)
    state = {n.removeprefix("base_model.model."): t for n, t in state.items()}
    today = {f"unet.{name}": tensor for name, tensor in state.items()}
    config = {"unet.r": 4, "unet.lora_alpha": 6, "unet.target_modules": EVERYWHERE}
    save_file(
        today, tmp_path / "today.safetensors", {LORA_ADAPTER_METADATA_KEY: json.dumps(config)}
    )
    before = {f"unet.{n}": t for n, t in convert_state_dict_to_diffusers(state).items()}
    assert any(".lora.down." in name for name in before)
    save_file(before, tmp_path / "before.safetensors")
    aged = {}
    for name, tensor in state.items():
        if "attn" in name:
            half = "up" if "lora_B" in name else "down"
            module = name.split(".lora_")[0].removesuffix(".0")
            attention, _, layer = module.rpartition(".")
            aged[f"{attention}.processor.{layer}_lora.{half}.weight"] = tensor
    torch.save(aged, tmp_path / "pytorch_lora_weights.bin")

    expected = merged(theirs)
    model = small_model()
    assert apply_lora(model, tmp_path / "today.safetensors").complete
    agree(model, expected, base)
    # Without metadata alpha is the rank: the difference is 4/6 of it.
    model = small_model()
    apply_lora(model, tmp_path / "before.safetensors", 6 / 4)
    agree(model, expected, base)
    model = small_model()
    applied = apply_lora(model, tmp_path, 6 / 4)  # a folder of diffusers'
    assert len(applied.layers) == len(aged) // 2 > 10
    agree(model, {n: t if "attn" in n else base[n] for n, t in expected.items()}, base)


def test_without_its_configuration_the_strength_is_a_guess_and_said(tmp_path, base):
    trained(base, CONFIGS["lora"]).save_pretrained(tmp_path / "folder")
    (tmp_path / "folder/adapter_model.safetensors").rename(tmp_path / "style.safetensors")
    applied = apply_lora(small_model(), tmp_path / "style.safetensors")
    assert not applied.complete
    assert "its alpha is stated nowhere and taken to be the rank" in str(applied)


def rewrite(folder: Path, **entries) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"peft_type": "IA3"}, "of an adapter of type 'IA3', and LORA, LOHA, LOKR can be read"),
        ({"peft_type": ["LORA"]}, "of an adapter of type"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model that the adapter is for"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True, which is not supported"),
        ({"lora_alpha": float("nan")}, "has lora_alpha nan"),
        ({"lora_alpha": "16"}, "has lora_alpha '16'"),
        ({"lora_alpha": 10**400}, "has lora_alpha 1000"),
        ({"r": 0}, "has r 0"),
        ({"alpha_pattern": {"(a+)+$": 1}}, r"has '\(a\+\)\+\$' in alpha_pattern, and only names"),
        ({"alpha_pattern": {"to_q": None}}, "has alpha_pattern None"),
        ({"rank_pattern": [1]}, "has a damaged rank_pattern"),
    ],
)
def test_configurations_that_cannot_be_followed(tmp_path, base, entries, says):
    trained(base, CONFIGS["lora"]).save_pretrained(tmp_path)
    rewrite(tmp_path, **entries)
    model, before = small_model(), small_model().state_dict()
    with pytest.raises(ValueError, match=says) as caught:
        apply_lora(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_whole_weights_beside_an_adapter_are_not_passed_over(tmp_path, base):
    config = LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["conv_out"])
    trained(base, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds .*conv_out.*, a kind of change that is not"):
        apply_lora(small_model(), tmp_path)


def test_a_model_of_ours_that_peft_adapts(tmp_path):
    """The mapper and the denoiser by the model's own names."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["attn1.to_q", "attn.c_qkv", "proj_in"])
    theirs = get_peft_model(small_model(), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.copy_(noise(*parameter.shape))
    theirs.save_pretrained(tmp_path)
    assert any("mapper" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    model = small_model()
    assert apply_lora(model, tmp_path).complete
    expected = theirs.merge_and_unload().state_dict()
    for name, tensor in model.state_dict().items():
        assert relative_error(tensor, expected[name]) < 1e-5, name
