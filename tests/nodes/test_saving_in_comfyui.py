"""Save Paint by Example in a real ComfyUI: what is loaded, patched or merged comes back."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.load import inspect, state_dict
from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main

from .host import Host, Prompt, failure, node, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]

FOLDER = "models/paint_by_example"
CONFIG = replace(TINY, vae=replace(TINY.vae, scale_factor=0.7), resolution=128)


def loader(name: str, weight_dtype: str = "default") -> dict:
    checkpoint = f"paint_by_example/{name}.safetensors"
    return node("PBELoader", checkpoint=checkpoint, weight_dtype=weight_dtype, attention="auto")


def saving(name: str, model: str = "1", dtype: str = "fp32", file: str = "saved-a") -> Prompt:
    """Loader 1, saver 9; between them what the caller adds."""
    inputs = {"model": [model, 0], "encoder": ["1", 1], "vae": ["1", 2]}
    return {"1": loader(file), "9": node("PBESaveModel", **inputs, name=name, dtype=dtype)}


def painting(file: str, model: str = "1", weight_dtype: str = "default") -> Prompt:
    """Loader 1, inputs 2, encoder 3, sampler 4, the crop in 6; seen at the model's size."""
    sampler = {
        "model": [model, 0], "positive": ["3", 0], "negative": ["3", 1], "vae": ["1", 2],
        "image": ["2", 0], "mask": ["2", 1], "seed": 3, "steps": 3, "similarity": 2.0,
        "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0, "region": "auto",
        "context": 1.8, "resolution": 0, "blend": -1,
    }  # fmt: skip
    encoder = {"encoder": ["1", 1], "exemplar": ["2", 2], "fit": "squash", "merge": "one each"}
    return {
        "1": loader(file, weight_dtype),
        "2": node("PBEExampleInputs", scene="meadow"),
        "3": node("PBEExemplarEncoder", **encoder),
        "4": node("PBEInpaintSampler", **sampler),
        "6": node("PreviewImage", images=["4", 2]),
    }


def picture(host: Host, prompt: Prompt) -> np.ndarray:
    """What the model painted, signed so that it can be subtracted."""
    return host.images(ran(host, prompt), "6")[0].astype(int)


def with_lora(prompt: Prompt) -> Prompt:
    lora = {"model": ["1", 0], "lora_name": "saving.safetensors", "strength_model": 0.8}
    return prompt | {"7": node("LoraLoaderModelOnly", **lora)}


def merging(prompt: Prompt) -> Prompt:
    """A third of the first model, two of the second."""
    merge = {"model1": ["1", 0], "model2": ["8", 0], "ratio": 1 / 3}
    return prompt | {"8": loader("saved-b"), "7": node("ModelMergeSimple", **merge)}


def files(host: Host) -> set[Path]:
    return set((host.base / "models").rglob("*")) | set((host.base / "output").rglob("*"))


@pytest.fixture(scope="module")
def folder(host: Host) -> Path:
    """Two models with random weights, and a LoRA for some of their layers."""
    folder = host.base / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = PaintByExample(CONFIG).eval().requires_grad_(False)
        save_model(folder / f"saved-{name}.safetensors", model)
    generator, lora = torch.Generator().manual_seed(5), {}
    for name, layer in model.unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(("to_v", "to_out.0", "proj")):
            key = "lora_unet_" + name.replace(".", "_")
            rows, columns = layer.weight.shape
            lora[f"{key}.lora_up.weight"] = torch.randn(rows, 4, generator=generator) * 0.2
            lora[f"{key}.lora_down.weight"] = torch.randn(4, columns, generator=generator) * 0.2
            lora[f"{key}.alpha"] = torch.tensor(4.0)
    (host.base / "models/loras").mkdir(parents=True, exist_ok=True)
    save_file(lora, host.base / "models/loras/saving.safetensors")
    return folder


def test_loaded_and_saved_is_bit_equal_and_read_by_all(host: Host, folder: Path, capsys):
    result = ran(host, saving("mine/same"))
    saved, original = folder / "mine/same.safetensors", folder / "saved-a.safetensors"
    ours, theirs = load_file(saved), load_file(original)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert all(ours[name].dtype == tensor.dtype for name, tensor in theirs.items())

    (text,) = result.outputs["9"]["text"]
    assert ("9", text) in result.texts  # below the node, too
    assert str(saved) in text and "paint_by_example/mine/same.safetensors" in text
    assert "Not in the file" not in text and "no more exact" not in text

    assert PaintByExample.from_checkpoint(saved).config == CONFIG
    report = inspect(saved)
    assert not report.missing and not report.unexpected and report.config == CONFIG
    assert main(["inspect", str(saved)]) == 0
    assert "same.safetensors" in capsys.readouterr().out
    assert np.array_equal(picture(host, painting("mine/same")), picture(host, painting("saved-a")))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(with_lora, "saved-with-lora", id="lora"),
        pytest.param(merging, "saved-merged", id="merge", marks=pytest.mark.long),
    ],
)
def test_what_is_patched_is_in_the_file(host: Host, folder: Path, change, name: str):
    """Also where the patched model has just painted, so that its weights are patched in place."""
    ran(host, change(saving(name, "7")))
    patched = picture(host, change(painting("saved-a", "7")))
    assert np.abs(patched - picture(host, painting("saved-a"))).max() > 8
    assert np.abs(patched - picture(host, painting(name))).max() <= 1

    once_more = change(painting("saved-a", "7"))
    once_more["4"]["inputs"]["seed"] = 4
    picture(host, once_more)
    ran(host, change(saving(f"{name}-again", "7")))
    first, second = (load_file(folder / f"{n}.safetensors") for n in (name, f"{name}-again"))
    assert all(torch.equal(first[key], tensor) for key, tensor in second.items())
    ran(host, saving(f"{name}-plain"))  # and without its patches the model is as it was
    plain, original = (load_file(folder / f"{n}.safetensors") for n in (f"{name}-plain", "saved-a"))
    assert all(torch.equal(original[key], tensor) for key, tensor in plain.items())


def test_a_merge_is_the_sum_that_it_says(host: Host, folder: Path):
    ran(host, merging(saving("sum", "7")))
    a, b, found = (load_file(folder / f"{n}.safetensors") for n in ("saved-a", "saved-b", "sum"))
    unet = [name for name in found if name.startswith("model.diffusion_model.")]
    for name in unet:
        torch.testing.assert_close(found[name], a[name] / 3 + b[name] * 2 / 3, rtol=1e-5, atol=1e-6)
    rest = [name for name in found if name not in unet]
    assert rest and all(torch.equal(found[name], a[name]) for name in rest)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_the_size(host: Host, folder: Path, dtype: str):
    ran(host, saving(dtype, dtype=dtype))
    loaded = PaintByExample.from_checkpoint(folder / f"{dtype}.safetensors", dtype=None)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    original = state_dict(PaintByExample.from_checkpoint(folder / "saved-a.safetensors"))
    for name, tensor in state_dict(loaded).items():
        assert torch.equal(tensor, original[name].to(kind)), name


def test_fp8_weights_are_saved_as_what_they_are_computed_in(host: Host, folder: Path):
    prompt = saving("from-fp8", dtype="fp16")
    prompt["1"] = loader("saved-a", "fp8_e4m3fn")
    result = ran(host, prompt)
    original = state_dict(PaintByExample.from_checkpoint(folder / "saved-a.safetensors"))
    found = load_file(folder / "from-fp8.safetensors")
    coarse = 0
    for name, tensor in original.items():
        kept = tensor
        if name.startswith("model.diffusion_model."):
            kept = tensor.to(torch.float8_e4m3fn)
            coarse += not torch.equal(kept.float(), tensor)
        assert torch.equal(found[name], kept.to(torch.float16)), name
    assert coarse
    (text,) = result.outputs["9"]["text"]
    assert "The denoiser was kept in float8_e4m3fn" in text and "weight dtype fp32" in text


def test_what_is_no_weight_is_named(host: Host, folder: Path):
    prompt = saving("free", "7")
    prompt["4"] = node("FreeU_V2", model=["1", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    prompt["5"] = node("RescaleCFG", model=["4", 0], multiplier=0.7)
    prompt["6"] = node("PerturbedAttentionGuidance", model=["5", 0], scale=3.0)
    cache = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    prompt["7"] = node("EasyCache", model=["6", 0], **cache)
    (text,) = ran(host, prompt).outputs["9"]["text"]
    assert text.endswith(
        "Not in the file, as they are no weights: FreeU_V2, PerturbedAttentionGuidance, "
        "RescaleCFG, easycache."
    )
    lora = {"model": ["1", 0], "lora_name": "saving.safetensors", "strength_model": 1.0}
    prompt = saving("bypass", "7") | {"7": node("LoraLoaderBypassModelOnly", **lora)}
    assert "cannot be saved with them; apply the LoRA with LoraLoaderModelOnly" in failure(
        host, prompt
    )
    assert not (folder / "bypass.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("saved-a", "is there already; give another name"),
        ("", "is not a name for a file"),
        ("../up", "is not a name for a file"),
        ("..\\up", "is not a name for a file"),
        ("a/../../up", "is not a name for a file"),
        ("/abs", "is not a name for a file"),
        ("C:/abs", "is not a name for a file"),
        ("new\nline", "is not a name for a file"),
        ("linked/out", "leads out of"),
        ("saved-a.safetensors/inside", "cannot make the folder"),
        ("n" * 300, "has 300 characters (300 bytes), and 200 bytes are the most"),
        ("見" * 100, "has 100 characters (300 bytes), and 200 bytes are the most"),
        ("folder" * 50 + "/name", "has 300 characters"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_names_that_cannot_be(host: Host, folder: Path, name: str, says: str):
    outside = host.base / "elsewhere"
    outside.mkdir(exist_ok=True)
    if not (folder / "linked").exists():
        (folder / "linked").symlink_to(outside, target_is_directory=True)
    before, content = files(host), (folder / "saved-a.safetensors").read_bytes()
    error = failure(host, saving(name))
    assert says in error and "\n" not in error, error
    assert files(host) == before and not list(outside.iterdir())
    assert (folder / "saved-a.safetensors").read_bytes() == content


def test_a_long_name_for_an_exemplar_is_refused_too(host: Host, folder: Path):
    prompt = painting("saved-a")
    for number in ("4", "6"):
        prompt.pop(number)
    conditionings = {"positive": ["3", 0], "negative": ["3", 1]}
    for name in ("n" * 300, "folder" * 50 + "/name"):
        before = files(host)
        prompt["9"] = node("PBESaveExemplar", **conditionings, name=name)
        assert "has 300 characters" in failure(host, prompt)
        assert files(host) == before
    prompt["9"] = node("PBESaveExemplar", **conditionings, name="told")
    result = ran(host, prompt)
    (text,) = result.outputs["9"]["text"]
    assert str(host.base / "output/exemplars/told_00001.safetensors") in text
    assert "choose told_00001.safetensors in Load Exemplar" in text
    assert ("9", text) in result.texts


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(host: Host, folder: Path):
    part = folder / ".full.safetensors.part"  # where a file is until it is whole
    part.symlink_to("/dev/full")
    error = failure(host, saving("full"))
    assert "cannot write" in error and "disk space" in error and "\n" not in error
    assert not part.is_symlink() and not (folder / "full.safetensors").exists()


def test_parts_of_other_models_are_refused(host: Host, folder: Path):
    torch.manual_seed(2)
    other = replace(CONFIG, vae=replace(CONFIG.vae, ch=32), tokens="all")
    save_model(folder / "other.safetensors", PaintByExample(other))
    for socket, slot in (("vae", 2), ("encoder", 1)):
        prompt = saving("mixed/wrong") | {"5": loader("other")}
        prompt["9"]["inputs"][socket] = ["5", slot]
        error = failure(host, prompt)
        assert f"the {socket}" in error and "loaded with" in error, error
        assert "\n" not in error and not (folder / "mixed").exists()


def test_what_comfyui_s_own_nodes_write_is_told_apart(host: Host, folder: Path):
    """They leave out the exemplar encoder; the sentence says which node to use."""
    prompt = {"1": loader("saved-a"), "9": node("ModelSave", model=["1", 0], filename_prefix="m")}
    ran(host, prompt)
    (written,) = (host.base / "output").glob("m_*.safetensors")
    with safe_open(written, "pt") as file:
        names = list(file.keys())
    assert names and all(name.startswith("model.diffusion_model.") for name in names)
    written.rename(folder / "by-host.safetensors")
    error = failure(host, painting("by-host"))
    assert "ComfyUI's own node" in error and "Save Paint by Example" in error, error
