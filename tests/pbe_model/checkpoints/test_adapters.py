"""Other people's adapters: what is merged, what is counted, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pbe_model import PaintByExample
from pbe_model.checkpoints.adapter_apply import changeable
from pbe_model.checkpoints.adapter_convert import convert_adapter
from pbe_model.checkpoints.adapter_names import family, sort_names
from pbe_model.checkpoints.diffusers_layout import module_table, renamed
from pbe_model.checkpoints.lora import adaptable, apply_lora, names_in_file
from pbe_model.checkpoints.official_names import UNET
from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main
from pbe_model.config import V1

from ..small import SMALL, noise, small_model

LAYER = "unet.middle_block.1.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "unet.input_blocks.1.0.in_layers.2"


def halves(name: str, rows: int = 64, columns: int = 64) -> dict[str, Tensor]:
    return {
        f"{name}.lora_up.weight": noise(rows, 2, seed=1),
        f"{name}.lora_down.weight": noise(2, columns, seed=2),
        f"{name}.alpha": torch.tensor(2.0),
    }


def kohya(path: str) -> str:
    return names_in_file([path], SMALL)[path]


def write(path: Path, *parts: dict[str, Tensor]) -> Path:
    held = {name: tensor for part in parts for name, tensor in part.items()}
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return path


TEXT = [
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
]


@pytest.mark.parametrize("name", TEXT)
def test_parts_for_a_text_encoder_are_counted(tmp_path, name):
    path = write(tmp_path / "a.safetensors", halves(kohya(LAYER)), halves(name))
    applied = apply_lora(small_model(), path)
    assert applied.layers == [LAYER] and len(applied.of_text_encoder) == 3
    assert not applied.complete
    assert str(applied).endswith("1 layers changed; 3 tensors of a text encoder left out")
    with pytest.raises(ValueError, match=r"changes a text encoder alone \(3 tensors\)"):
        apply_lora(small_model(), write(tmp_path / "b.safetensors", halves(name)))


def test_layers_that_this_model_does_not_have_are_counted(tmp_path):
    path = write(
        tmp_path / "a.safetensors",
        halves(kohya(LAYER)),
        halves("lora_unet_down_blocks_7_attentions_0_proj_in"),
    )
    applied = apply_lora(small_model(), path)
    assert applied.layers == [LAYER] and len(applied.unknown) == 3
    assert "3 tensors for layers that this model does not have left out (lora_unet_down_" in str(
        applied
    )


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("FLUX", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("FLUX", "transformer.single_transformer_blocks.3.attn.to_q"),
        ("Stable Diffusion 3", "transformer.transformer_blocks.0.attn.to_q"),
        ("Stable Diffusion 3", "diffusion_model.joint_blocks.0.x_block.attn.qkv"),
        ("a model of transformers alone", "diffusion_model.blocks.0.cross_attn.k"),
        ("a model of transformers alone", "lora_unet__blocks_0_cross_attn_k"),
        ("Stable Cascade", "lora_prior_unet_down_blocks_0_1_mapper"),
        ("Stable Diffusion XL", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("Stable Diffusion XL", "unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q"),
        (
            "Stable Diffusion XL",
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q",
        ),
    ],
)
def test_what_is_for_another_family_is_told(tmp_path, family, name, capsys):
    """Even where layers of the same name would fit."""
    path = write(tmp_path / "a.safetensors", halves(kohya(LAYER)), halves(name))
    save_model(tmp_path / "model.safetensors", small_model())
    with pytest.raises(ValueError, match=f"is an adapter for {family}, by names such as"):
        apply_lora(small_model(), path)
    assert main(["convert", str(path), str(tmp_path / "b.safetensors"), "--to", "lora"]) == 2
    assert f"is an adapter for {family}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["oft_blocks", "oft_diag", "a1.weight", "scalar", "reshape_weight", "set_weight", "weight",
     "bias", "modules_to_save.weight", "on_input", "ia3_l"],
)  # fmt: skip
def test_kinds_that_are_not_known_are_not_passed_over(tmp_path, name):
    strange = {f"{kohya(LAYER)}.{name}": noise(64)}
    path = write(tmp_path / "a.safetensors", halves(kohya(CONVOLUTION), 32, 32 * 9), strange)
    with pytest.raises(ValueError, match=f"holds .*{name}, a kind of change that is not supported"):
        apply_lora(small_model(), path)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"hada_w1_a": (64, 2), "hada_w1_b": (2, 64)}, "as a half is missing"),
        ({"lokr_w1": (8, 8)}, "as a half is missing"),
        ({"dora_scale": (64, 1)}, "as a half is missing"),
        ({"lora_up.weight": (64, 2), "lora_down.weight": (2, 64), "lokr_w1": (8, 8),
          "lokr_w2": (8, 8)}, "there are two kinds"),
        ({"lokr_w1": (8, 8), "lokr_w2": (8, 9)}, "cannot change"),
        ({"lokr_w1": (4, 16), "lokr_w2": (16, 4, 2)}, "cannot change"),
        ({"diff": (64, 63)}, "cannot change"),
        ({"diff_b": (64,)}, "cannot change"),  # the layer has no bias
        ({"lora_up.weight": (64, 2), "lora_down.weight": (2, 64), "lora_mid.weight": (2, 2)},
         "cannot change"),
        ({"lora_up.weight": (64, 2), "lora_down.weight": (2, 64), "dora_scale": (3, 1)},
         "cannot change"),
        ({"lora_up.weight": (64, 5000), "lora_down.weight": (5000, 64)}, "cannot change"),
    ],
)  # fmt: skip
def test_parts_that_make_no_change_are_named(tmp_path, parts, says):
    held = {f"{kohya(LAYER)}.{role}": noise(*shape) for role, shape in parts.items()}
    path = write(tmp_path / "a.safetensors", halves(kohya(CONVOLUTION), 32, 32 * 9), held)
    model, before = small_model(), small_model().state_dict()
    with pytest.raises(ValueError, match=says) as caught:
        apply_lora(model, path)
    assert kohya(LAYER) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_lengths_of_rows_are_what_the_file_says(tmp_path):
    """DoRA by rows: after merging, every row has the length that the file states."""
    lengths = 1 + noise(64, 1, seed=4).abs()
    path = write(
        tmp_path / "a.safetensors",
        halves(kohya(LAYER)),
        {f"{kohya(LAYER)}.dora_scale": lengths},
    )
    model, half = small_model(), small_model()
    before = adaptable(model)[LAYER].weight.clone()
    apply_lora(model, path)
    weight = adaptable(model)[LAYER].weight
    torch.testing.assert_close(weight.norm(dim=1, keepdim=True), lengths)
    up, down, _ = halves(kohya(LAYER)).values()
    torch.testing.assert_close(
        torch.nn.functional.normalize(weight), torch.nn.functional.normalize(before + up @ down)
    )
    apply_lora(half, path, 0.5)
    torch.testing.assert_close(adaptable(half)[LAYER].weight, (before + weight) / 2)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".SAFETENSORS"])
def test_files_are_told_by_their_content(tmp_path, suffix):
    made = write(tmp_path / "a.safetensors", halves(kohya(LAYER)))
    path = tmp_path / f"b{suffix}"
    if suffix == ".SAFETENSORS":
        made.rename(path)
    else:
        torch.save({"state_dict": load_file(made), "epoch": 3}, path)
    assert apply_lora(small_model(), path).complete


def test_the_commands_say_what_was_left_out(tmp_path, capsys):
    from PIL import Image

    save_model(tmp_path / "model.safetensors", small_model())
    write(tmp_path / "lora.safetensors", halves(kohya(LAYER)), halves(TEXT[0]))
    Image.new("RGB", (40, 40), "grey").save(tmp_path / "photo.png")
    Image.new("L", (40, 40)).save(tmp_path / "mask.png")
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 30, 30))
    mask.save(tmp_path / "mask.png")
    files = {"image": "photo.png", "exemplar": "photo.png", "mask": "mask.png", "out": "out.png",
             "checkpoint": "model.safetensors", "lora": "lora.safetensors"}  # fmt: skip
    edit = [
        "edit",
        "--steps=1",
        "--device=cpu",
        *(f"--{k}={tmp_path / v}" for k, v in files.items()),
    ]
    assert main(edit) == 0
    said = capsys.readouterr()
    assert "1 layers changed; 3 tensors of a text encoder left out" in said.err
    assert said.out.strip() == str(tmp_path / "out.png")

    out = tmp_path / "out.safetensors"
    convert = ["convert", str(tmp_path / "lora.safetensors"), str(out), "--to", "lora"]
    assert main([*convert, "--dtype", "fp16"]) == 0
    said = capsys.readouterr().out
    assert "an adapter of 1 layers" in said and "text encoder  3: lora_te_" in said
    assert load_file(out).keys() == halves(kohya(LAYER)).keys()
    assert {t.dtype for t in load_file(out).values()} == {torch.float16}
    for arguments, says in (
        ([*convert[:2], str(tmp_path / "out.bin"), *convert[3:]], "end it in .safetensors"),
        ([*convert, "--ema"], "an adapter has no moving average"),
        (["convert", str(out), str(out), "--to", "lora"], "choose another name"),
        (["convert", str(out), str(tmp_path / "x"), "--to", "official"], "this is an adapter"),
    ):
        before = sorted(tmp_path.iterdir())
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1 and sorted(tmp_path.iterdir()) == before


def test_a_configuration_of_ours_survives_a_conversion(tmp_path):
    stated = json.dumps(SMALL.to_dict())
    save_file(halves(kohya(LAYER)), tmp_path / "a.safetensors", {"pbe_config": stated})
    convert_adapter(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    other = small_model()
    other.config = type(SMALL).from_dict({**SMALL.to_dict(), "tokens": "all"})
    with pytest.raises(ValueError, match="trained for another model"):
        apply_lora(other, tmp_path / "b.safetensors")


FORMS = {
    "kohya": lambda ours, theirs: f"lora_unet_{theirs}".replace(".", "_") + ".lora_up.weight",
    "kohya, official names": lambda ours, theirs: (
        f"lora_unet_{ours}".replace(".", "_") + ".lora_up.weight"
    ),
    "lycoris": lambda ours, theirs: f"lycoris_{theirs}".replace(".", "_") + ".lokr_w1",
    "diffusers": lambda ours, theirs: f"unet.{theirs}.lora.up.weight",
    "processors": lambda ours, theirs: (
        theirs.removesuffix(".0").replace(".to_", ".processor.to_") + "_lora.up.weight"
        if ".to_" in theirs
        else f"{theirs}.lora.up.weight"
    ),
    "peft": lambda ours, theirs: f"base_model.model.{theirs}.lora_B.weight",
    "peft of a pipeline": lambda ours, theirs: f"unet.base_model.model.{theirs}.lora_B.weight",
    "compiled": lambda ours, theirs: f"base_model.model._orig_mod.{theirs}.lora_B.default.weight",
    "comfyui": lambda ours, theirs: f"diffusion_model.{ours}.lora_B.weight",
    "official": lambda ours, theirs: f"model.diffusion_model.{ours}.lora_up.weight",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_of_the_published_size_is_found_by_every_name(form):
    with torch.device("meta"):
        layers = [path for path in changeable(PaintByExample(V1)) if path.startswith("unet.")]
    table = module_table(V1)
    names = {}
    for path in layers:
        ours = path.removeprefix("unet.")
        (theirs,) = renamed(UNET + ours, table)
        theirs = theirs.removeprefix("unet.")
        names[FORMS[form](ours, theirs)] = path
    found = sort_names(names, layers, V1)
    assert not found.unknown and not found.unsupported and not found.of_text_encoder
    assert {next(iter(held.values())): path for path, held in found.parts.items()} == names
    assert len(names) == len(layers) > 250 and family(names) is None
