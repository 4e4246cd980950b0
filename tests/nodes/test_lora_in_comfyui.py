"""Load LoRA (Paint by Example) in a real ComfyUI."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pbe_model import PaintByExample
from pbe_model.checkpoints.adapter_convert import convert_adapter

from .host import Host, Prompt, failure, node, ran
from .test_patches_in_comfyui import graph, only

pytestmark = [pytest.mark.host, pytest.mark.slow]

TEXT_ENCODER = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def loras(host: Host) -> Path:
    """PEFT's folder with an adapter for the bundled model, and the same under kohya's names."""
    torch.manual_seed(0)
    tensors = {}
    for name, layer in PaintByExample.from_checkpoint().unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn" in name:
            up, down = torch.randn(layer.out_features, 2), torch.randn(2, layer.in_features)
            tensors[f"base_model.model.{name}.lora_B.weight"] = 0.2 * up
            tensors[f"base_model.model.{name}.lora_A.weight"] = 0.2 * down
    tensors[f"{TEXT_ENCODER}.lora_A.weight"] = torch.zeros(2, 8)
    tensors[f"{TEXT_ENCODER}.lora_B.weight"] = torch.zeros(8, 2)
    folder = host.base / "models/loras"
    peft = folder / "peft/adapter_model.safetensors"
    peft.parent.mkdir(parents=True)
    save_file(tensors, peft)
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (peft.parent / "adapter_config.json").write_text(json.dumps(stated))
    convert_adapter(peft, folder / "kohya.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"<html>not found</html>")
    return folder


def with_lora(lora: str, strength: float = 0.7) -> Prompt:
    inputs = {"model": ["1", 0], "lora": lora, "strength": strength}
    return only(graph(model="9"), "4") | {"9": node("PBELoadLoRA", **inputs)}


def test_an_adapter_of_peft_paints_as_its_conversion_and_says_what_it_used(host: Host, loras: Path):
    peft = ran(host, with_lora("peft/adapter_model.safetensors"))
    assert ("9", "2 tensors of a text encoder left out") in [
        (number, text.partition("; ")[2]) for number, text in peft.texts
    ]
    inputs = {"model": ["1", 0], "lora_name": "kohya.safetensors", "strength_model": 0.7}
    theirs = ran(
        host, with_lora("kohya.safetensors") | {"9": node("LoraLoaderModelOnly", **inputs)}
    )
    plain = ran(host, only(graph(), "4"))
    (a,), (b,), (c,) = (host.images(run, "5") for run in (peft, theirs, plain))
    assert abs(a.astype(int) - b).max() <= 1  # pictures of two loads
    assert abs(a.astype(int) - c).max() > 20


def test_a_strength_of_0_changes_nothing(host: Host, loras: Path):
    (found,) = host.images(ran(host, with_lora("kohya.safetensors", strength=0.0)), "5")
    (plain,) = host.images(ran(host, only(graph(), "4")), "5")
    assert abs(found.astype(int) - plain).max() <= 1


def test_a_file_that_is_none_is_one_sentence(host: Host, loras: Path):
    said = failure(host, with_lora("damaged.safetensors"))
    assert "damaged.safetensors" in said and "HTML" in said and "\n" not in said
