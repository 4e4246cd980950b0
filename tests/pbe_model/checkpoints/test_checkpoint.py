"""Round trips through every file format, foreign layouts, and files that do not fit."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pbe_model import TINY, V1, PaintByExample, PBEConfig
from pbe_model.checkpoints.infer_config import check_told, infer_config
from pbe_model.checkpoints.load import PARTS, inspect, load_parts, load_weights, read, state_dict
from pbe_model.checkpoints.safetensors_io import Deferred
from pbe_model.checkpoints.save import convert, save_model, save_official, save_parts
from pbe_model.networks.attention import BACKENDS, reference_attention

from ..small import SMALL, SMALL_ALL, SMALL_V, noise, relative_error, small_model

TOWER = "cond_stage_model.transformer."
POSITION_IDS = TOWER + "vision_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model()


@pytest.fixture(scope="module")
def tensors(model: PaintByExample) -> dict[str, Tensor]:
    """The weights under the official names; copy before changing."""
    return state_dict(model)


def assert_same(ours: PaintByExample, theirs: PaintByExample) -> None:
    ours_state, theirs_state = state_dict(ours), state_dict(theirs)
    assert ours_state.keys() == theirs_state.keys()
    for name, tensor in theirs_state.items():
        assert torch.equal(ours_state[name], tensor), name


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """A file as others write it, with no word on its architecture."""
    if path.suffix == ".safetensors":
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata or None)
    else:
        torch.save({"state_dict": tensors}, path)
    return path


# ---- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, SMALL_ALL, SMALL_V, replace(SMALL, resolution=64)])
def test_safetensors_round_trip_keeps_weights_and_configuration(tmp_path, config):
    path, model = tmp_path / "model.safetensors", small_model(config)
    save_model(path, model)
    loaded = PaintByExample.from_checkpoint(path)
    assert loaded.config == config
    assert_same(loaded, model)
    assert not loaded.training
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    assert not any(b.is_meta for b in loaded.buffers())


def test_a_loaded_model_computes_the_same(tmp_path, model):
    """Also what lies outside the state dict, such as the tower's positions, is in its place."""
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    loaded = PaintByExample.from_checkpoint(path)
    pixels, x, t = noise(1, 3, 16, 16), noise(1, 9, 8, 8), torch.tensor([5])
    context = model.encoder(pixels)
    # Not to the bit: weights may lie at other addresses, which changes the order of sums.
    assert relative_error(loaded.encoder(pixels), context) < 1e-5
    assert relative_error(loaded.unet(x, t, context), model.unet(x, t, context)) < 1e-5
    assert relative_error(loaded.encode(pixels), model.encode(pixels)) < 1e-5
    assert torch.equal(loaded.schedule.betas, model.schedule.betas)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_round_trip(tmp_path, model, dtype):
    path = tmp_path / "model.safetensors"
    save_model(path, model, dtype=dtype)
    file = read(path)
    assert {t.dtype for t in file.tensors.values()} == {dtype}
    rounded = {name: tensor.to(dtype) for name, tensor in state_dict(model).items()}
    assert all(torch.equal(file.tensors[name], t) for name, t in rounded.items())

    full = PaintByExample.from_checkpoint(path)
    assert {t.dtype for t in full.parameters()} == {torch.float32}
    assert torch.equal(
        full.unet.out[2].weight, rounded["model.diffusion_model.out.2.weight"].float()
    )
    half = PaintByExample.from_checkpoint(path, dtype=dtype)
    assert {t.dtype for t in half.parameters()} == {dtype}


def test_metadata_and_schedule_are_written(tmp_path, model):
    path = tmp_path / "model.safetensors"
    save_model(path, model, metadata={"licence": "CC0", "training": {"steps": 7}})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        buffers = {n: file.get_tensor(n) for n in model.schedule.buffers()}
    assert metadata["licence"] == "CC0"
    assert json.loads(metadata["training"]) == {"steps": 7}
    assert PBEConfig.from_dict(json.loads(metadata["pbe_config"])) == SMALL
    assert torch.equal(buffers["betas"], model.schedule.betas.float())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # no partial file


def test_a_failed_save_leaves_the_old_file(tmp_path, model):
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(path, model, metadata={"what": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_official_round_trip(tmp_path, model, tensors):
    path = tmp_path / "model.ckpt"
    save_official(path, model)
    written = torch.load(path, weights_only=True)["state_dict"]
    assert written.keys() == {*tensors, *model.schedule.buffers(), POSITION_IDS}
    assert torch.equal(written[POSITION_IDS], torch.arange(5)[None])
    loaded = PaintByExample.from_checkpoint(path)
    assert_same(loaded, model)
    assert loaded.config == SMALL  # with the resolution, which no shape tells
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


# ---- layouts of others -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
@pytest.mark.parametrize("positions", [True, False])
def test_tower_names_of_every_transformers_version(
    tmp_path, model, suffix, prefix, positions, tensors
):
    renamed = {n.replace(TOWER + "vision_model.", TOWER + prefix): t for n, t in tensors.items()}
    if positions:
        renamed[f"{TOWER}{prefix}embeddings.position_ids"] = torch.arange(5)[None]
    path = write(tmp_path / f"model{suffix}", renamed)
    assert_same(PaintByExample.from_checkpoint(path, config=SMALL), model)
    assert read(path).dropped == [n for n in renamed if "position_ids" in n]


def test_flat_pickle_and_what_a_trainer_adds(tmp_path, model, tensors):
    """No `state_dict` level, and the moving average, optimizer and schedule beside the weights."""
    path = tmp_path / "model.ckpt"
    extra = {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.diffusion_modelout2weight": noise(3),
        "logvar": torch.zeros(1000),
        "scale_factor": torch.tensor(0.18215),
        **model.schedule.buffers(),
    }
    torch.save({**tensors, **extra, "optimizer_states": [{"lr": 1e-5}], "epoch": 3}, path)
    assert_same(PaintByExample.from_checkpoint(path, config=SMALL), model)
    assert set(read(path).dropped) == set(extra)


def test_sizes_are_read_off_the_tensors(tensors):
    """What shapes cannot say, the resolution, is the published model's."""
    assert infer_config(tensors, {}) == replace(SMALL, resolution=V1.resolution)


def test_v1_is_recognised():
    with torch.device("meta"):
        model = PaintByExample(V1)
    assert infer_config(state_dict(model), {}) == V1


def test_tiny_is_recognised_but_for_what_only_metadata_can_say():
    with torch.device("meta"):
        model = PaintByExample(TINY)
    inferred = infer_config(state_dict(model), {})
    assert replace(inferred.unet, norm_groups=TINY.unet.norm_groups) == TINY.unet
    assert inferred.exemplar == TINY.exemplar
    assert replace(inferred.vae, scale_factor=TINY.vae.scale_factor) == TINY.vae
    assert infer_config(state_dict(model), {"pbe_config": json.dumps(TINY.to_dict())}) == TINY


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_shapes_that_tell_too_little_are_not_painted_with(tmp_path, tensors, suffix):
    """Else a small model would be run at the published model's size, and nothing would say so."""
    path, out = write(tmp_path / f"model{suffix}", tensors), tmp_path / "out.safetensors"
    for read_it in (
        lambda: PaintByExample.from_checkpoint(path),
        lambda: convert(path, out, layout="safetensors"),
    ):
        with pytest.raises(ValueError, match="nothing tells at which size") as raised:
            read_it()
        assert str(path) in str(raised.value) and "config=" in str(raised.value)
    assert not out.exists()
    assert PaintByExample.from_checkpoint(path, config=SMALL).config == SMALL
    assert not inspect(path).missing


def test_the_published_widths_are_painted_with():
    """Whatever the exemplar encoder's: it has no size of its own that shapes do not tell."""
    check_told(replace(V1, exemplar=TINY.exemplar, tokens="all"), {}, "file")
    with pytest.raises(ValueError, match="128 channels instead of 320"):
        check_told(replace(V1, unet=replace(V1.unet, model_channels=128)), {}, "file")


def test_a_file_of_comfyui_s_own_nodes_says_which_node_to_use(tmp_path, tensors):
    unet = {n: t for n, t in tensors.items() if n.startswith("model.diffusion_model.")}
    text = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(2)}
    vae = {n: t for n, t in tensors.items() if n.startswith("first_stage_model.")}
    for held in (unet, unet | text | vae):
        path = tmp_path / "host.safetensors"
        save_file({n: t.contiguous() for n, t in held.items()}, path, {
            "modelspec.predict_key": "epsilon", "prompt": "",
        })  # fmt: skip
        with pytest.raises(ValueError, match="the node Save Paint by Example"):
            inspect(path)


def test_parts_are_saved_as_the_model_that_they_make(tmp_path, model):
    """Deferred weights are made one by one, in the order of the file, and each once."""
    made = []

    def make(name: str, tensor: Tensor) -> Tensor:
        made.append(name)
        return tensor

    weights = dict(model.unet.state_dict())
    deferred = {n: Deferred(t.shape, t.dtype, partial(make, n, t)) for n, t in weights.items()}
    parts = {"vae": model.vae.state_dict(), "encoder": model.encoder.state_dict()}
    whole, path = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    save_model(whole, model)
    save_parts(path, SMALL, parts | {"unet": deferred})
    assert path.read_bytes() == whole.read_bytes()
    assert made == list(weights)


def test_parts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, model):
    parts = {part: dict(getattr(model, part).state_dict()) for part in ("unet", "vae", "encoder")}
    for part, change in (
        ("vae", lambda weights: weights.popitem()),
        ("encoder", lambda weights: weights.update(learnable_vector=torch.zeros(1, 1, 3))),
        ("unet", lambda weights: weights.update(more=torch.zeros(1))),
    ):
        changed = {name: dict(weights) for name, weights in parts.items()}
        change(changed[part])
        with pytest.raises(ValueError, match=f"the {part} does not fit .*take the {part} that"):
            save_parts(tmp_path / "model.safetensors", SMALL, changed)
    assert not list(tmp_path.iterdir())


def test_a_given_configuration_overrides(tmp_path, tensors):
    path = write(tmp_path / "model.safetensors", tensors)
    assert PaintByExample.from_checkpoint(path, config=SMALL_ALL).config == SMALL_ALL


def test_attention_is_chosen_by_name(tmp_path, tensors, monkeypatch):
    monkeypatch.setitem(BACKENDS, "own", reference_attention)
    path = write(tmp_path / "model.safetensors", tensors)
    model = PaintByExample.from_checkpoint(path, config=SMALL, attention="own")
    block = model.unet.middle_block[1].transformer_blocks[0]
    assert block.attn1.attention is block.attn2.attention is reference_attention


# ---- strictness --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_tensor_that_does_not_fit_is_named(tmp_path, tensors, suffix):
    changed = dict(tensors)
    del changed["proj_out.bias"]
    changed["proj_in.bias"] = noise(3)
    changed["cond_stage_model.final_ln.bias"] = noise(3)
    path = write(tmp_path / f"model{suffix}", changed)
    with pytest.raises(ValueError) as caught:
        PaintByExample.from_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "missing proj_out.bias (1)" in message
    assert "unexpected proj_in.bias (1)" in message
    assert "of another shape cond_stage_model.final_ln.bias (1)" in message


def test_a_failed_load_changes_nothing(tensors):
    model = small_model(seed=1)
    before = {n: t.clone() for n, t in state_dict(model).items()}
    with pytest.raises(ValueError, match="missing learnable_vector"):
        load_weights(model, {n: t for n, t in tensors.items() if n != "learnable_vector"}, "it")
    assert all(torch.equal(t, before[n]) for n, t in state_dict(model).items())


@pytest.mark.parametrize("name", ["learnable_vector", "first_stage_model.encoder.conv_in.weight"])
def test_a_tensor_that_tells_the_size_is_missed_too(tmp_path, tensors, name):
    path = write(tmp_path / "m.safetensors", {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ValueError, match=f"m.safetensors: .*{name}.* missing"):
        PaintByExample.from_checkpoint(path)


@pytest.mark.parametrize(
    "stack",
    [
        "model.diffusion_model.input_blocks.1",
        "first_stage_model.encoder.down",
        "cond_stage_model.mapper",
        "cond_stage_model.transformer.vision_model.encoder.layers",
        "model.diffusion_model.output_blocks",
    ],
)
def test_a_stack_missing_as_a_whole_is_not_one_of_no_layers(tmp_path, tensors, stack):
    path = write(
        tmp_path / "m.safetensors", {n: t for n, t in tensors.items() if not n.startswith(stack)}
    )
    with pytest.raises(ValueError, match=f"m.safetensors.* {stack}|{stack}.* is missing"):
        PaintByExample.from_checkpoint(path)


def test_a_configuration_that_does_not_fit_the_file(tmp_path, tensors):
    path = write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"another shape .*config="):
        PaintByExample.from_checkpoint(
            path, config=replace(SMALL, unet=replace(SMALL.unet, context_dim=32))
        )


@pytest.mark.parametrize("channels", [4, 5, 8])
def test_other_denoisers_are_recognised_by_their_channels(tmp_path, tensors, channels):
    conv = "model.diffusion_model.input_blocks.0.0.weight"
    changed = {**tensors, conv: tensors[conv][:, :channels]}
    path = write(tmp_path / "sd.safetensors", changed)
    with pytest.raises(ValueError, match=f"sd.safetensors: .* {channels} channels .* 9"):
        PaintByExample.from_checkpoint(path)


@pytest.mark.parametrize(
    "others",
    [
        {"lora_unet_down.lora_up.weight": noise(2, 2)},
        {"unet.conv_in.weight": noise(32, 9, 3, 3)},
        {"model.diffusion_model.input_blocks.0.0.weight": noise(32, 9, 3, 3)},
        {"model.diffusion_model.input_blocks.0.0.weight": noise(32)},
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(0, 9, 3, 3)},
    ],
    ids=["lora", "diffusers", "one tensor", "one vector", "nothing"],
)
def test_files_of_other_models_are_refused_in_a_sentence(tmp_path, others):
    path = write(tmp_path / "other.safetensors", others)
    for load in (PaintByExample.from_checkpoint, inspect):
        with pytest.raises(ValueError, match=r"other\.safetensors: .*(this is|is missing)"):
            load(path)


@pytest.mark.parametrize("metadata", ["{", "[]", "3", '{"unet": 3}', '{"rooms": 1}'])
def test_damaged_metadata_is_refused(tmp_path, tensors, metadata):
    path = write(tmp_path / "model.safetensors", tensors, pbe_config=metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*configuration"):
        PaintByExample.from_checkpoint(path)


# ---- files that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_truncated_files(tmp_path, tensors, suffix):
    path = write(tmp_path / f"model{suffix}", tensors)
    whole = path.read_bytes()
    for share in (0.0, 0.001, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        says = "damaged, truncated" if share else "it is an empty file"
        with pytest.raises(ValueError, match=f"model{suffix} cannot be read .*{says}"):
            PaintByExample.from_checkpoint(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".bin", ""])
@pytest.mark.parametrize("content", [b"", b"not a model\n" * 10], ids=["empty", "text"])
def test_files_of_another_kind(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"model{suffix} cannot be read"):
        PaintByExample.from_checkpoint(path)


@pytest.mark.parametrize("outer", [{}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": [1]}])
def test_pickles_without_weights(tmp_path, outer):
    path = tmp_path / "model.ckpt"
    torch.save(outer, path)
    with pytest.raises(ValueError, match=r"model\.ckpt.* (holds no weights|not a dictionary)"):
        PaintByExample.from_checkpoint(path)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="folder"):
        PaintByExample.from_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint at .*none\.ckpt"):
        PaintByExample.from_checkpoint(tmp_path / "none.ckpt")


# ---- parts and inspection ----------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_one_part_is_saved_and_loaded_alone(tmp_path, model, part):
    path = tmp_path / "part.safetensors"
    save_model(path, model, parts=[part])
    other, untouched = small_model(seed=1), state_dict(small_model(seed=1))
    assert load_parts(other, read(path).tensors, path) == [part]
    mine = state_dict(model, [part])
    for name, tensor in state_dict(other).items():
        assert torch.equal(tensor, mine[name] if name in mine else untouched[name]), name


def test_a_whole_file_gives_every_part(model, tensors):
    other = small_model(seed=1)
    assert load_parts(other, tensors, "it") == list(PARTS)
    assert_same(other, model)


def test_an_incomplete_part_or_none_is_refused(tensors):
    model = small_model(seed=1)
    bias = "first_stage_model.quant_conv.bias"
    for bad in ({n: t for n, t in tensors.items() if n != bias}, {**tensors, bias: noise(3)}):
        with pytest.raises(ValueError, match=f"it: the vae .*{bias}"):
            load_parts(model, bad, "it")
    with pytest.raises(ValueError, match="it holds no part"):
        load_parts(model, {"x": noise(3)}, "it")


def test_inspect_tells_what_is_there_and_what_is_not(tmp_path, tensors):
    changed = {n: t.half() for n, t in tensors.items() if n != "proj_out.bias"}
    changed["extra"], changed["logvar"] = noise(3), noise(2)
    changed["proj_out.weight"] = noise(3)
    path = write(tmp_path / "model.safetensors", changed, author="me", format="pt")
    report = inspect(path)
    assert report.missing == ["proj_out.bias"]
    assert report.misshapen == ["proj_out.weight"]
    assert report.unexpected == ["extra"]
    assert report.dropped == ["logvar"]
    assert report.dtypes == ["float16", "float32"]
    assert report.metadata == {"author": "me"}
    assert report.size == path.stat().st_size
    assert report.parameters == sum(t.numel() for t in changed.values()) - 2
    assert report.config == replace(SMALL, resolution=512)


def test_half_of_a_model_stays_close(tmp_path, model):
    """float16 on disk costs a little accuracy, not more."""
    path = tmp_path / "model.safetensors"
    save_model(path, model, dtype=torch.float16)
    loaded = PaintByExample.from_checkpoint(path)
    x, t, context = noise(1, 9, 8, 8), torch.tensor([5]), noise(1, 1, 24)
    error = relative_error(loaded.unet(x, t, context), model.unet(x, t, context))
    assert 0 < error < 1e-2
