"""The nodes in a real ComfyUI: registered, run, followed, and equal to `edit`.

One server serves the whole session. Pictures come back as 8-bit PNG files, which the host rounds
down, so equal results differ by up to one grey level from floating-point ones, and not at all from
each other.
"""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pbe_model import TINY, PaintByExample, edit
from pbe_model.checkpoints.load import BUNDLED, inspect
from pbe_model.checkpoints.save import save_diffusers, save_model
from pbe_model.config import EditDefaults, ScheduleConfig, VAEConfig
from pbe_model.image_io import read_image, read_mask

from .graph import to_prompt, with_pictures
from .host import Host, HostError, Prompt, Run, failure

pytestmark = [pytest.mark.host, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
SCENES = ROOT / "pbe_model/assets/scenes"
NODES = (
    "PBELoader",
    "PBELoadLoRA",
    "PBEExampleInputs",
    "PBEExemplarEncoder",
    "PBESaveExemplar",
    "PBELoadExemplar",
    "PBEMaskAugmenter",
    "PBEInpaintSampler",
    "PBEOutpaint",
    "PBECrop",
    "PBEStitch",
    "PBEPaint",
    "PBEPaintGenerated",
    "PBESaveModel",
)


@pytest.fixture(scope="module")
def checkpoint(host: Host) -> Path:
    """A tiny model with random weights in the host's model folder."""
    torch.manual_seed(0)
    path = host.base / "models/paint_by_example/random.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    config = replace(TINY, vae=replace(TINY.vae, scale_factor=0.7))  # not 1, so that it shows
    save_model(path, PaintByExample(config).eval())
    return path


def graph(checkpoint: str = "paint_by_example/random.safetensors", **sampler) -> Prompt:
    """The basic edit: loader 1, inputs 2, encoder 3, sampler 4, pictures 5 to 7."""
    inputs = {
        "model": ["1", 0],
        "positive": ["3", 0],
        "negative": ["3", 1],
        "vae": ["1", 2],
        "image": ["2", 0],
        "mask": ["2", 1],
        "seed": 3,
        "steps": 4,
        "similarity": 2.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 1.0,
        "region": "auto",
        "context": 1.8,
        "resolution": 0,
        "blend": -1,
        **sampler,
    }
    loader = {"checkpoint": checkpoint, "weight_dtype": "default", "attention": "auto"}
    encoder = {"encoder": ["1", 1], "exemplar": ["2", 2], "fit": "squash", "merge": "one each"}
    return {
        "1": {"class_type": "PBELoader", "inputs": loader},
        "2": {"class_type": "PBEExampleInputs", "inputs": {"scene": "meadow"}},
        "3": {"class_type": "PBEExemplarEncoder", "inputs": encoder},
        "4": {"class_type": "PBEInpaintSampler", "inputs": inputs},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 2]}},
        "7": {"class_type": "MaskToImage", "inputs": {"mask": ["4", 3]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
    }


def scene(name: str = "meadow") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Photo, hole mask and exemplar of a bundled scene."""
    folder = SCENES / name
    return (
        read_image(folder / "photo.jpg"),
        read_mask(folder / "hole_mask.png"),
        read_image(folder / "exemplar.jpg"),
    )


def crop_of(host: Host, prompt: Prompt) -> np.ndarray:
    """What the model painted in a run of `graph`, signed so that it can be subtracted."""
    run = host.run(prompt)
    assert run.error is None, run.error_text
    return host.images(run, "6")[0].astype(int)


def inputs_of(info: dict) -> dict[str, dict]:
    """Options of a node's inputs by name, without the hidden ones that the host itself fills in."""
    groups = (info["input"].get(kind, {}) for kind in ("required", "optional"))
    return {name: spec[1] for group in groups for name, spec in group.items()}


def test_every_node_is_registered_and_explains_itself(host: Host):
    assert (
        "IMPORT FAILED" not in host.log and "Error while calling comfy_entrypoint" not in host.log
    )
    for node in NODES:
        info = host.object_info(node)[node]
        assert info["category"] == "paint by example" and info["description"]
        for name, options in inputs_of(info).items():
            assert options.get("tooltip"), f"{node}.{name} has no tooltip"
        assert all(info["output_tooltips"]), f"an output of {node} has no tooltip"


def test_templates_are_offered(host: Host):
    offered = json.loads(host.get("/workflow_templates"))
    (pack,) = (name for name in offered if "under" in name)
    assert sorted(offered[pack]) == sorted(path.stem for path in WORKFLOWS)
    for path in WORKFLOWS:
        for file in (path, path.with_suffix(".jpg")):
            served = host.get(f"/api/workflow_templates/{pack}/{file.name}")
            assert served == file.read_bytes()


def test_help_and_translations_are_served_and_complete(host: Host):
    names = json.loads(host.get("/i18n"))
    for node in NODES:
        info = host.object_info(node)[node]
        inputs = inputs_of(info)
        pack = quote(info["python_module"].removeprefix("custom_nodes."))
        page = host.get(f"/extensions/{pack}/docs/{node}.md").decode()
        assert page.startswith(f"# {info['display_name']}\n")
        assert all(name in page for name in inputs), f"{node}.md does not name every input"
        for language in ("en", "ko", "zh", "ja"):
            entry = names[language]["nodeDefs"][node]
            assert list(entry["inputs"]) == list(inputs)
            assert list(entry["outputs"]) == [str(i) for i in range(len(info["output"]))]
        # English is the schema's own text, so that the two cannot drift apart.
        entry = names["en"]["nodeDefs"][node]
        assert entry["description"] == info["description"]
        assert [e["tooltip"] for e in entry["inputs"].values()] == [
            options["tooltip"] for options in inputs.values()
        ]
        assert [e["tooltip"] for e in entry["outputs"].values()] == info["output_tooltips"]


def needed_models(workflow: dict) -> dict[str, str]:
    """Model files that the user has to fetch, by the id of the node that loads them.

    Listed where the page itself looks for them, which then offers to download what is missing.
    """
    models = {str(node["id"]): node["properties"].get("models", []) for node in workflow["nodes"]}
    return {node: model["name"] for node, listed in models.items() for model in listed}


def painted_in_full(host: Host, workflow: dict) -> Run:
    """A run of a workflow in which every sampler has taken all its steps, with previews."""
    run = host.run(with_pictures(to_prompt(workflow, host.object_info())))
    assert run.error is None, run.error_text
    samplers = [n for n in workflow["nodes"] if n["type"] in ("PBEInpaintSampler", "KSampler")]
    own = inspect(BUNDLED).config.defaults.steps
    asked = [sampler["widgets_values"][2] or own for sampler in samplers]
    for sampler, count in zip(samplers, asked, strict=True):
        steps = [(value, top) for node, value, top in run.progress if node == str(sampler["id"])]
        assert steps[-1] == (count, count) and len(steps) >= count
    assert len(run.previews) >= sum(asked)
    return run


def test_no_workflow_uses_a_node_that_the_host_is_about_to_drop(host: Host):
    known = host.object_info()
    dropped = {name for name, info in known.items() if info.get("deprecated")}
    assert "ImageBatch" in dropped  # so that the host still says it in this way
    for path in WORKFLOWS:
        used = {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
        assert not used & dropped, f"{path.name} uses {sorted(used & dropped)}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_shipped_workflow_runs_as_it_stands(host: Host, path: Path):
    """One that needs a foreign model lacks that file and nothing else: the host checks the rest.

    The app waits for pictures; it gets those of a bundled scene.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    if missing := needed_models(workflow):
        prompt = to_prompt(workflow, host.object_info())
        # Previews of what needs no model would run; the result needs everything.
        prompt = {node: it for node, it in prompt.items() if "Preview" not in it["class_type"]}
        with pytest.raises(HostError) as refused:
            host.run(prompt)
        complaints = json.loads(str(refused.value))["node_errors"]
        assert {
            (node, error["type"], error["extra_info"].get("received_value"))
            for node, complaint in complaints.items()
            for error in complaint["errors"]
        } == {(node, "value_not_in_list", name) for node, name in missing.items()}
        return
    painted_in_full(host, workflow)


def test_an_upscaled_crop_runs_with_an_upscale_model(host: Host):
    """The smallest one that the host loads: without weights its layers repeat each pixel."""
    path = ROOT / "example_workflows/edit_then_upscale_model.json"
    workflow = json.loads(path.read_text(encoding="utf-8"))
    shapes = {"0": (4, 3, 3, 3), "1": (4,), "2": (4, 4, 3, 3), "3": (4,), "4": (48, 4, 3, 3)}
    weights = {f"body.{i}.weight": torch.zeros(shape) for i, shape in shapes.items()}
    weights |= {f"body.{i}.bias": torch.zeros(shapes[i][0]) for i in ("0", "2", "4")}
    (name,) = needed_models(workflow).values()
    file = host.base / "models/upscale_models" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file)
    try:
        run = painted_in_full(host, workflow)
    finally:
        file.unlink()
    crop, enlarged = (
        host.images(run, str(node["id"]))[0]
        for title in ("The crop as painted", "The crop, enlarged")
        for node in workflow["nodes"]
        if node.get("title") == title
    )
    assert np.array_equal(enlarged, crop.repeat(4, axis=0).repeat(4, axis=1))


def test_photo_outside_the_blend_zone_is_untouched(host: Host, checkpoint: Path):
    run = host.run(graph())
    assert run.error is None, run.error_text
    (result,), (blend,) = host.images(run, "5"), host.images(run, "8")
    # What a PNG of the photo itself holds after the same way through the host.
    photo = host.run(
        {
            "2": graph()["2"],
            "5": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        }
    )
    (original,) = host.images(photo, "5")
    untouched = blend[..., 0] == 0
    assert 0.5 < untouched.mean() < 1
    assert np.array_equal(result[untouched], original[untouched])
    assert (result != original)[~untouched].mean() > 0.5


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler"])
def test_node_and_python_paint_the_same_pictures(host: Host, checkpoint: Path, sampler: str):
    prompt = graph(sampler_name=sampler, steps=6, seed=11, image=["10", 0])
    prompt["10"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": 2}}
    run = host.run(prompt)
    assert run.error is None, run.error_text
    model = PaintByExample.from_checkpoint(checkpoint)
    settings = {"steps": 6, "similarity": 2.0, "seed": 11, "num_images": 2}
    expected = edit(model, *scene(), sampler=sampler, **settings)
    for node, tensors in (("6", expected.crops), ("5", expected.images)):
        for picture, tensor in zip(host.images(run, node), tensors, strict=True):
            levels = np.abs(picture - 255 * tensor.numpy()).max()
            assert levels <= 1.01, f"node {node} differs by {levels:.2f} grey levels"


@pytest.fixture(scope="module")
def of_v(host: Host, checkpoint: Path) -> Path:
    """A model of v that has seen pure noise, beside the other."""
    torch.manual_seed(1)
    path = checkpoint.with_name("v.safetensors")
    schedule = ScheduleConfig(prediction="v", zero_terminal_snr=True)
    usual = EditDefaults(steps=3, similarity=3.5, sampler="euler")
    config = replace(
        TINY, vae=replace(TINY.vae, scale_factor=0.7), schedule=schedule, defaults=usual
    )
    save_model(path, PaintByExample(config).eval())
    return path


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler"])
def test_a_model_of_v_paints_as_in_python(host: Host, of_v: Path, sampler: str):
    run = host.run(graph("paint_by_example/v.safetensors", sampler_name=sampler, steps=6, seed=11))
    assert run.error is None, run.error_text
    settings = {"steps": 6, "similarity": 2.0, "seed": 11, "sampler": sampler}
    expected = edit(PaintByExample.from_checkpoint(of_v), *scene(), **settings)
    (crop,), (picture,) = host.images(run, "6"), host.images(run, "5")
    assert np.abs(crop - 255 * expected.crops[0].numpy()).max() <= 1.01
    assert np.abs(picture - 255 * expected.images[0].numpy()).max() <= 1.01


def test_the_models_own_settings_count_where_the_node_says_nothing(host: Host, of_v: Path):
    nothing = {"steps": 0, "similarity": -1.0, "sampler_name": "auto"}
    run = host.run(graph("paint_by_example/v.safetensors", seed=11, **nothing))
    assert run.error is None, run.error_text
    assert [p for p in run.progress if p[0] == "4"][-1] == ("4", 3, 3)
    expected = edit(PaintByExample.from_checkpoint(of_v), *scene(), seed=11)
    assert np.abs(host.images(run, "5")[0] - 255 * expected.images[0].numpy()).max() <= 1.01


def test_progress_and_previews_come_at_every_step(host: Host, checkpoint: Path):
    run = host.run(graph(steps=5, seed=12))
    assert [p for p in run.progress if p[0] == "4"] == [("4", i, 5) for i in range(1, 6)]
    assert len(run.previews) == 5
    assert np.asarray(run.previews[-1]).std() > 0


def test_batches_broadcast(host: Host, checkpoint: Path):
    prompt = graph(mask=["9", 0])
    augmenter = {"mask": ["2", 1], "shape": "bezier", "expand": 2, "feather": 2}
    augmenter |= {"fill_holes": True, "seed": 1, "variations": 3}
    prompt["9"] = {"class_type": "PBEMaskAugmenter", "inputs": augmenter}
    run = host.run(prompt)
    assert run.error is None, run.error_text
    pictures, masks = host.images(run, "5"), host.images(run, "8")
    assert len(pictures) == len(masks) == 3
    assert not np.array_equal(masks[0], masks[1])

    prompt["10"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": 2}}
    prompt["4"]["inputs"]["image"] = ["10", 0]
    assert "2 photos, 3 masks, 1 exemplars do not match" in host.run(prompt).error_text


NATIVE = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced")


def native_sampling(kind: str) -> Prompt:
    """Node 24 samples from the latent of node 23 with the conditioning of node 22."""
    parts = {"model": ["1", 0], "positive": ["22", 0], "negative": ["22", 1]}
    how = {"steps": 4, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    latent = {"latent_image": ["23", 0]}
    if kind == "KSampler":
        return {
            "24": {"class_type": kind, "inputs": parts | how | latent | {"seed": 3, "denoise": 1}}
        }
    if kind == "KSamplerAdvanced":
        span = {"start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
        seed = {"add_noise": "enable", "noise_seed": 3}
        return {"24": {"class_type": kind, "inputs": parts | how | latent | span | seed}}
    made = {
        "noise": ("RandomNoise", {"noise_seed": 3}),
        "guider": ("CFGGuider", parts | {"cfg": 2.0}),
        "sampler": ("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
        "sigmas": (
            "BasicScheduler",
            {"model": ["1", 0], "scheduler": "karras", "steps": 4, "denoise": 1.0},
        ),
    }
    prompt = {name: {"class_type": node, "inputs": given} for name, (node, given) in made.items()}
    links = {name: [name, 0] for name in made}
    return prompt | {"24": {"class_type": kind, "inputs": links | latent}}


@pytest.mark.parametrize(
    ("kind", "model"), [*((kind, "checkpoint") for kind in NATIVE), ("KSampler", "of_v")]
)
def test_native_samplers_paint_the_same_picture(
    host: Host, request: pytest.FixtureRequest, kind: str, model: str
):
    """Behind InpaintModelConditioning, on a photo of the model's own size."""
    Image.fromarray(
        (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
    ).save(host.base / "input/photo.png")  # fmt: skip
    hole = np.zeros((64, 64, 3), np.uint8)
    hole[20:45, 15:50] = 255
    Image.fromarray(hole).save(host.base / "input/hole.png")
    name = f"paint_by_example/{request.getfixturevalue(model).name}"
    prompt = graph(name, image=["20", 0], mask=["21", 0], region="whole")
    prompt["20"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    prompt["21"] = {
        "class_type": "LoadImageMask",
        "inputs": {"image": "hole.png", "channel": "red"},
    }
    prompt["22"] = {
        "class_type": "InpaintModelConditioning",
        "inputs": {
            "positive": ["3", 0],
            "negative": ["3", 1],
            "vae": ["1", 2],
            "pixels": ["20", 0],
            "mask": ["21", 0],
            "noise_mask": False,
        },
    }
    prompt["23"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    }
    prompt |= native_sampling(kind)
    prompt["25"] = {"class_type": "VAEDecode", "inputs": {"samples": ["24", 0], "vae": ["1", 2]}}
    prompt["26"] = {"class_type": "PreviewImage", "inputs": {"images": ["25", 0]}}
    run = host.run(prompt)
    assert run.error is None, run.error_text
    (native,), (ours,) = host.images(run, "26"), host.images(run, "6")
    assert native.shape == ours.shape == (64, 64, 3)
    assert np.abs(native.astype(int) - ours).max() <= 1


def test_a_retouched_crop_is_stitched_back(host: Host, checkpoint: Path):
    prompt = graph()
    prompt["40"] = {
        "class_type": "PBEStitch",
        "inputs": {"stitch": ["4", 4], "image": ["4", 2]},
    }
    upscale = {"image": ["4", 2], "upscale_method": "bicubic", "scale_by": 2.0}
    prompt["41"] = {"class_type": "ImageScaleBy", "inputs": upscale}
    prompt["42"] = {
        "class_type": "PBEStitch",
        "inputs": {"stitch": ["4", 4], "image": ["41", 0]},
    }
    prompt["43"] = {"class_type": "PreviewImage", "inputs": {"images": ["40", 0]}}
    prompt["44"] = {"class_type": "PreviewImage", "inputs": {"images": ["42", 0]}}
    run = host.run(prompt)
    assert run.error is None, run.error_text
    (direct,), (same,), (upscaled,) = (host.images(run, node) for node in ("5", "43", "44"))
    (blend,) = host.images(run, "8")
    assert np.array_equal(same, direct)
    untouched = blend[..., 0] == 0
    assert np.array_equal(upscaled[untouched], direct[untouched])
    assert np.abs(upscaled.astype(int) - direct).mean() < 2


def test_a_lora_changes_the_model_as_if_merged(host: Host, checkpoint: Path):
    """The one-token shortcut has to see patched weights."""
    merged = PaintByExample.from_checkpoint(checkpoint)
    layer = next(n for n, _ in merged.unet.named_modules() if n.endswith("attn2.to_v"))
    weight = merged.unet.get_submodule(layer).weight
    generator = torch.Generator().manual_seed(0)
    up, down = (
        torch.randn(shape, generator=generator) * 0.3
        for shape in ((weight.shape[0], 4), (4, weight.shape[1]))
    )
    name = "lora_unet_" + layer.replace(".", "_")
    lora = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": torch.tensor(4.0),
    }
    folder = host.base / "models/loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora, folder / "lora.safetensors")
    weight.add_(up @ down)
    save_model(checkpoint.with_name("merged.safetensors"), merged)

    prompt = graph(model=["50", 0])
    loader = {"model": ["1", 0], "lora_name": "lora.safetensors", "strength_model": 1.0}
    prompt["50"] = {"class_type": "LoraLoaderModelOnly", "inputs": loader}
    patched = crop_of(host, prompt)
    assert np.abs(patched - crop_of(host, graph())).max() > 8
    expected = crop_of(host, graph("paint_by_example/merged.safetensors"))
    assert np.abs(patched - expected).max() <= 1


@pytest.mark.parametrize(
    ("loader", "tolerance"),
    [
        ({"attention": "pytorch"}, 0.1),
        ({"weight_dtype": "fp16"}, 0.5),
        ({"weight_dtype": "bf16"}, 4),
        ({"weight_dtype": "fp8_e4m3fn"}, 40),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_attention_and_weight_types_change_little(
    host: Host, checkpoint: Path, loader: dict, tolerance: float
):
    prompt = graph()
    prompt["1"]["inputs"].update(loader)
    assert np.abs(crop_of(host, prompt) - crop_of(host, graph())).mean() <= tolerance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": ["30", 0]}, "the mask is empty: LoadImage makes its mask of what is transparent"),
        ({"vae": ["31", 2]}, "connect the VAE of Load Paint by Example"),
        ({"positive": ["32", 0]}, "connect an Exemplar Encoder of the same checkpoint"),
        ({"guidance_start": 0.7, "guidance_end": 0.2}, "the guidance interval is 0.7 to 0.2"),
        ({"steps": -1}, "Value -1 smaller than min of 0"),
        ({"sampler_name": "none such"}, "Value not in list"),
    ],
    ids=["empty mask", "foreign VAE", "foreign exemplar", "interval", "steps", "sampler"],
)
def test_bad_input_is_one_clear_sentence(host: Host, checkpoint: Path, changes: dict, message: str):
    other = replace(
        TINY,
        unet=replace(TINY.unet, context_dim=64),
        vae=VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1),
    )
    save_model(checkpoint.with_name("narrow.safetensors"), PaintByExample(other))
    prompt = graph(**changes)
    solid = {"value": 0.0, "width": 64, "height": 64}
    prompt["30"] = {"class_type": "SolidMask", "inputs": solid}
    foreign = prompt["1"]["inputs"] | {"checkpoint": "paint_by_example/narrow.safetensors"}
    prompt["31"] = {"class_type": "PBELoader", "inputs": foreign}
    exemplar = prompt["3"]["inputs"] | {"encoder": ["31", 1]}
    prompt["32"] = {"class_type": "PBEExemplarEncoder", "inputs": exemplar}
    assert message in failure(host, prompt)


def test_other_models_and_missing_conditions_are_told_apart(host: Host, checkpoint: Path):
    prompt = graph()
    prompt["1"]["inputs"]["attention"] = "xformers"
    assert "xformers attention does not work on cpu" in failure(host, prompt)
    prompt = graph()
    prompt["60"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["3", 0],
            "negative": ["3", 1],
            "latent_image": ["4", 1],
            "seed": 0,
            "steps": 1,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    }
    prompt["61"] = {"class_type": "VAEDecode", "inputs": {"samples": ["60", 0], "vae": ["1", 2]}}
    prompt["62"] = {"class_type": "PreviewImage", "inputs": {"images": ["61", 0]}}
    assert "through InpaintModelConditioning" in failure(host, prompt)


def test_a_result_of_nans_is_an_error_with_a_remedy(host: Host, checkpoint: Path):
    broken = PaintByExample(TINY)
    torch.nn.init.constant_(broken.unet.out[-1].bias, 3e38)  # a number, but not for long
    save_model(checkpoint.with_name("broken.safetensors"), broken)
    run = host.run(graph("paint_by_example/broken.safetensors"))
    assert "the result holds NaNs" in run.error_text and "bf16" in run.error_text


def test_a_folder_of_diffusers_is_offered_whole(host: Host, checkpoint: Path):
    """And not the files in it, nor those of a download that is not finished."""
    torch.manual_seed(3)
    model = PaintByExample(replace(TINY, exemplar=replace(TINY.exemplar, mapper_layers=1)))
    save_model(checkpoint.with_name("same.safetensors"), model)
    save_diffusers(checkpoint.with_name("whole"), model)
    unfinished = checkpoint.with_name("model.diffusers.download") / "unet" / "part.safetensors"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    offered = host.object_info("PBELoader")["PBELoader"]["input"]["required"]["checkpoint"]
    names = offered[1]["options"] if isinstance(offered[0], str) else offered[0]
    found = [name for name in names if "whole" in name or "download" in name]
    assert found == ["paint_by_example/whole"]
    pictures = [
        crop_of(host, graph(f"paint_by_example/{name}")) for name in ("whole", "same.safetensors")
    ]
    # The weights lie at other addresses in the two files, which may round sums differently.
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_checkpoint_of_another_kind_is_refused(host: Host, checkpoint: Path):
    other = checkpoint.with_name("other.safetensors")
    other.write_bytes(b"not a checkpoint")
    run = host.run(graph("paint_by_example/other.safetensors"))
    assert "other.safetensors cannot be read as weights: it is a text file" in run.error_text
    with pytest.raises(HostError, match="Value not in list"):
        host.run(graph("paint_by_example/../../../secret.safetensors"))
