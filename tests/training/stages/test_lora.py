"""Training adapters in the place of weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pbe_model import PaintByExample
from pbe_model.checkpoints.lora import apply_lora, save_lora
from pbe_model.config import PBEConfig
from training.config import LoRAConfig
from training.stages.lora import LowRank, add_lora, lora_state, merge_lora

from ..runs import SMALL, randomise

EVERYWHERE = ("attn1", "attn2", "ff", "proj_in", "proj_out", "mapper")


@pytest.fixture
def model() -> PaintByExample:
    model = PaintByExample(SMALL)
    randomise(model)
    return model


def outputs(model: PaintByExample) -> Tensor:
    """What denoiser and encoder say to fixed inputs, one row after the other."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 9, 8, 8, generator=generator)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    context = model.encoder(pixels)
    return torch.cat([model.unet(x, torch.tensor([5, 500]), context).flatten(), context.flatten()])


def train_a_little(model: PaintByExample, steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        outputs(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_nothing_changes_at_first_and_names_stay(model: PaintByExample) -> None:
    before, names = outputs(model), set(dict(model.named_parameters()))
    adapted = add_lora(model, LoRAConfig(rank=2, targets=EVERYWHERE, dropout=0.5))
    assert torch.equal(outputs(model), before)
    added = set(dict(model.named_parameters())) - names
    assert names <= set(dict(model.named_parameters()))
    assert added == {f"{name}.lora.{half}" for name in adapted for half in ("down", "up")}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == added


def test_default_targets_and_the_inert_layers(model: PaintByExample) -> None:
    everything = PaintByExample(PBEConfig.from_dict({**SMALL.to_dict(), "tokens": "all"}))
    block = "unet.middle_block.1.transformer_blocks.0"
    wanted = {f"attn1.to_{x}" for x in ("q", "k", "v", "out.0")} | {"ff.net.0.proj", "ff.net.2"}
    one = {"attn2.to_v", "attn2.to_out.0"}
    for each, more in ((model, one), (everything, one | {"attn2.to_q", "attn2.to_k"})):
        adapted = add_lora(each, LoRAConfig(rank=1))
        found = {name.removeprefix(f"{block}.") for name in adapted if name.startswith(block)}
        assert found == wanted | more
        assert not any("encoder" in name or "proj_in" in name for name in adapted)


def test_a_target_that_is_nowhere_is_refused_before_anything_is_done(model: PaintByExample) -> None:
    for target in ("attn3", "attn2.to_q", "self_attn", "vae", "projection", ""):
        with pytest.raises(ValueError, match=f"lora.targets has '{target}'"):
            add_lora(model, LoRAConfig(rank=1, targets=("attn1", target)))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(module, LowRank) for module in model.modules())


def test_only_the_adapters_learn_and_every_one_does(model: PaintByExample) -> None:
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    add_lora(model, LoRAConfig(rank=2, targets=EVERYWHERE))
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train_a_little(model)
    for name, parameter in model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
        else:
            assert not torch.equal(parameter, start[name]), name


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, stride=2, padding=1)])
def test_merged_and_not_merged_are_the_same(layer: nn.Linear | nn.Conv2d) -> None:
    """Of one layer, exactly as the formula says, convolutions included."""
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 7, 7)
    plain = layer(x)
    adapter = LowRank(layer, 2, 6.0, 0.0)
    nn.init.normal_(adapter.up)
    layer.add_module("lora", adapter)
    merged = copy.deepcopy(layer)
    delta = torch.einsum("or,ri...->oi...", adapter.up.flatten(1), adapter.down)
    merged.lora.hook.remove()
    with torch.no_grad():
        merged.weight += 3 * delta
    assert torch.allclose(layer(x), merged(x), atol=1e-5)
    assert (layer(x) - plain).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_file_merge_and_training_agree(model: PaintByExample, tmp_path, alpha: float) -> None:
    base = copy.deepcopy(model)
    adapted = add_lora(model, LoRAConfig(rank=2, alpha=alpha, targets=EVERYWHERE))
    train_a_little(model)
    trained, names = outputs(model), set(dict(base.named_parameters()))
    path = tmp_path / "lora.safetensors"
    save_lora(path, lora_state(model), SMALL)
    assert set(apply_lora(base, path).layers) == set(adapted)
    merge_lora(model)
    assert set(dict(model.named_parameters())) == names
    scale = trained.abs().max()
    assert (outputs(model) - trained).abs().max() < 1e-5 * scale
    assert torch.allclose(outputs(base), outputs(model), atol=1e-6 * scale.item())
    assert (trained - outputs(PaintByExample(SMALL))).abs().max() > 0.1


def test_dropout_in_training_only(model: PaintByExample) -> None:
    add_lora(model, LoRAConfig(rank=2, dropout=0.5))
    train_a_little(model)
    with torch.no_grad():
        assert not torch.equal(outputs(model.train()), outputs(model))
        assert torch.equal(outputs(model.eval()), outputs(model))


def test_with_autocast_and_checkpointing(model: PaintByExample) -> None:
    """Gradients are those without, up to bfloat16."""
    add_lora(model, LoRAConfig(rank=2, targets=EVERYWHERE))
    train_a_little(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradients(checkpointing: bool, autocast: bool) -> Tensor:
        model.unet.gradient_checkpointing = checkpointing
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = outputs(model).float().square().mean()
        found = torch.autograd.grad(loss, list(trained.values()))
        return torch.cat([g.flatten().float() for g in found])

    plain = gradients(False, False)
    assert (gradients(True, False) - plain).abs().max() < 1e-5 * plain.abs().max()
    assert (gradients(True, True) - plain).norm() < 0.1 * plain.norm()
