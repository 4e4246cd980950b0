"""Files of adapters, and merging them."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from pbe_model import PBEConfig
from pbe_model.checkpoints.lora import adaptable, apply_lora, names_in_file, parse_lora, save_lora
from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main
from pbe_model.config import V1
from pbe_model.image_io import read_image
from pbe_model.model import PaintByExample

from ..small import SMALL, noise, small_model

MIDDLE = "unet.middle_block.1.transformer_blocks.0.attn2.to_v"
MAPPER = "encoder.cond_stage_model.mapper.resblocks.0.attn.c_qkv"
CONVOLUTION = "unet.input_blocks.1.0.in_layers.2"


def adapter(
    model: PaintByExample, *paths: str, rank: int = 2, alpha: float = 3
) -> dict[str, Tensor]:
    """A random one for these layers."""
    tensors, layers = {}, adaptable(model)
    for path in paths:
        rows, *columns = layers[path].weight.shape
        name = names_in_file([path], model.config)[path]
        tensors[f"{name}.lora_up.weight"] = noise(rows, rank, *(1 for _ in columns[1:]), seed=1)
        tensors[f"{name}.lora_down.weight"] = noise(rank, *columns, seed=2)
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def weights(model: PaintByExample) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write(path: Path, tensors: dict[str, Tensor], config: PBEConfig = SMALL) -> Path:
    save_lora(path, tensors, config)
    return path


def test_names_are_those_of_trainers_of_stable_diffusion():
    with torch.device("meta"):
        layers = adaptable(PaintByExample(V1))
    names = names_in_file(layers, V1)
    assert len(set(names.values())) == len(names)
    prefix = "unet.input_blocks.4.1.transformer_blocks.0"
    theirs = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
    assert names[f"{prefix}.attn1.to_out.0"] == f"{theirs}_attn1_to_out_0"
    assert names[f"{prefix}.ff.net.0.proj"] == f"{theirs}_ff_net_0_proj"
    assert names["unet.input_blocks.4.1.proj_in"] == "lora_unet_down_blocks_1_attentions_0_proj_in"
    assert names[MAPPER] == f"lora_{MAPPER}".replace(".", "_")
    assert not any("transformer.vision_model" in path or "vae" in path for path in names)


def test_diffusers_reads_the_denoiser_s_layers():
    """Its own reader of such files, for Stable Diffusion."""
    with torch.device("meta"):
        model = PaintByExample(V1)
    path = "unet.output_blocks.3.1.transformer_blocks.0.attn1.to_k"
    tensors = adapter(model, MIDDLE, path, "unet.input_blocks.1.1.proj_out")
    found, _ = StableDiffusionPipeline.lora_state_dict(tensors)
    # Its names of the halves depend on whether peft is installed.
    read = {re.sub(r"\.processor|[._]lora.*", "", name) for name in found}
    assert read == {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        "unet.down_blocks.0.attentions.0.proj_out",
    }


@pytest.mark.parametrize("path", [MIDDLE, MAPPER, CONVOLUTION])
def test_a_weight_becomes_what_the_formula_says(tmp_path, path):
    model, before = small_model(), weights(small_model())
    tensors = adapter(model, path)
    up, down = list(tensors.values())[:2]
    file = write(tmp_path / "lora.safetensors", tensors)
    assert apply_lora(model, file, 0.5).layers == [path]
    expected = before[f"{path}.weight"] + 0.5 * 3 / 2 * torch.einsum(
        "or,ri...->oi...", up.flatten(1), down
    )
    assert torch.allclose(weights(model)[f"{path}.weight"], expected, atol=1e-5)
    changed = {n for n, t in weights(model).items() if not torch.equal(t, before[n])}
    assert changed == {f"{path}.weight"}
    apply_lora(model, file, -0.5)
    assert torch.allclose(weights(model)[f"{path}.weight"], before[f"{path}.weight"], atol=1e-5)


def test_without_alpha_the_scale_is_one_and_official_names_are_read(tmp_path):
    model, same = small_model(), small_model()
    up, down, _ = adapter(model, MIDDLE, alpha=2).values()
    name = "lora_unet_" + MIDDLE.removeprefix("unet.").replace(".", "_")
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    apply_lora(model, tmp_path / "a.safetensors")
    apply_lora(same, write(tmp_path / "b.safetensors", adapter(same, MIDDLE, alpha=2)))
    found = weights(model)
    for name, tensor in weights(same).items():
        assert torch.equal(found[name], tensor), name


def test_half_precision_rounds_once_and_overflow_is_an_error(tmp_path):
    model = small_model().half()
    weight = adaptable(model)[MIDDLE].weight.clone()
    tensors = adapter(model, MIDDLE)
    up, down = list(tensors.values())[:2]
    apply_lora(model, write(tmp_path / "a.safetensors", tensors))
    assert torch.equal(adaptable(model)[MIDDLE].weight, (weight.float() + 1.5 * (up @ down)).half())
    with pytest.raises(ValueError, match=r"to_v.weight does not fit into float16"):
        apply_lora(model, tmp_path / "a.safetensors", 1e6)


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    model = small_model()
    good = adapter(model, MIDDLE)
    name = names_in_file([MIDDLE], SMALL)[MIDDLE]
    cases = {
        f"{name}.alpha, {name}.lora_down.weight make no change of a layer, as a half is missing": {
            n: t for n, t in good.items() if "lora_up" not in n
        },
        r"lora_up.weight \(8, 2\) cannot change .*to_v, whose weight is \(64, 24\)": good
        | {f"{name}.lora_up.weight": noise(8, 2)},
        r"lora_down.weight \(3, 24\).* cannot change": good
        | {f"{name}.lora_down.weight": noise(3, 24)},
        "holds NaN": good | {f"{name}.lora_down.weight": noise(2, 24) / 0},
        "not an adapter for this model": {"x": noise(2, 2)},
    }
    before = weights(model)
    for number, (message, tensors) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            apply_lora(model, path)
    with pytest.raises(ValueError, match="no adapter at"):
        apply_lora(model, tmp_path / "none.safetensors")
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_an_adapter_of_ours_for_another_model_is_refused(tmp_path):
    other = PBEConfig.from_dict({**SMALL.to_dict(), "tokens": "all"})
    path = write(tmp_path / "a.safetensors", adapter(small_model(), MIDDLE), other)
    with pytest.raises(ValueError, match=r"trained for another model \(its tokens differ\)"):
        apply_lora(small_model(), path)
    elsewhere = PBEConfig.from_dict({**SMALL.to_dict(), "resolution": 64})
    write(path, adapter(small_model(), MIDDLE), elsewhere)
    assert apply_lora(small_model(), path).layers == [MIDDLE]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        (r"C:\loras\a.safetensors", (r"C:\loras\a.safetensors", 1.0)),
        (r"C:\loras\a.safetensors:2", (r"C:\loras\a.safetensors", 2.0)),
    ],
)
def test_file_and_strength(text, expected):
    assert parse_lora(text) == expected
    with pytest.raises(ValueError, match="the strength is nan"):
        parse_lora("a.safetensors:nan")


@pytest.fixture
def files(tmp_path) -> Path:
    """A model, a version with the adapter merged by hand, the adapter, and pictures."""
    from PIL import Image

    model = small_model()
    save_model(tmp_path / "model.safetensors", model)
    tensors = adapter(model, MIDDLE)
    write(tmp_path / "lora.safetensors", tensors)
    up, down = list(tensors.values())[:2]
    adaptable(model)[MIDDLE].weight.add_(2 * 1.5 * up @ down)
    save_model(tmp_path / "merged.safetensors", model)
    grey = (noise(40, 40, 3) * 40 + 128).clamp(0, 255).byte().numpy()
    Image.fromarray(grey).save(tmp_path / "photo.png")
    hole = torch.zeros(40, 40, dtype=torch.uint8)
    hole[10:30, 10:30] = 255
    Image.fromarray(hole.numpy()).save(tmp_path / "mask.png")
    return tmp_path


def test_commands_paint_with_an_adapter(files, capsys):
    inputs = ["--image", "photo.png", "--mask", "mask.png", "--exemplar", "photo.png"]
    inputs = [str(files / word) if "." in word else word for word in inputs]

    def edit(out: str, checkpoint: str, *more: str):
        command = ["edit", *inputs, "--steps", "2", "--device", "cpu", "--out", str(files / out)]
        assert main([*command, "--checkpoint", str(files / checkpoint), *more]) == 0
        return read_image(files / out)

    lora = [
        "--lora",
        f"{files / 'lora.safetensors'}:0.5",
        "--lora",
        f"{files / 'lora.safetensors'}:1.5",
    ]
    plain = edit("plain.png", "model.safetensors")
    adapted = edit("adapted.png", "model.safetensors", *lora)
    merged = edit("merged.png", "merged.safetensors")
    assert (adapted - merged).abs().max() < 2 / 255
    assert (adapted - plain).abs().max() > 8 / 255

    line = {"image": "photo.png", "mask": "mask.png", "exemplar": "photo.png", "steps": 2}
    (files / "edits.jsonl").write_text(json.dumps(line))
    batch = ["batch", str(files / "edits.jsonl"), "--out", str(files / "out"), "--device", "cpu"]
    batch += ["--checkpoint", str(files / "model.safetensors")]
    assert main([*batch, *lora]) == 0
    assert (read_image(files / "out/00001.png") - adapted).abs().max() == 0
    assert main([*batch, *lora]) == 0  # done already
    assert main(batch) == 1  # of another model: the note says so
    assert "already exists and is not the result of this edit" in capsys.readouterr().err
    assert main([*batch[:-2], "--lora", "none.safetensors", "--out", str(files / "b")]) == 2
    assert "no adapter at none.safetensors" in capsys.readouterr().err


def test_a_file_says_what_it_is_for(tmp_path):
    tensors = adapter(small_model(), MIDDLE)
    path = tmp_path / "a.safetensors"
    save_lora(path, tensors, SMALL, dtype=torch.float16, metadata={"rank": 2, "base": "x"})
    stored = load_file(path)
    assert stored.keys() == tensors.keys()
    assert {t.dtype for t in stored.values()} == {torch.float16}
