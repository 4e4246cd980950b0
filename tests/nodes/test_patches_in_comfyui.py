"""Patches of other nodes and wrong wires, as the page's user meets them."""

import pytest

from .host import Host, Prompt

pytestmark = [pytest.mark.host, pytest.mark.slow]


def graph(model: str = "1", positive: int = 0, negative: int = 1) -> Prompt:
    """One edit by the bundled model, in PBE Inpaint Sampler ("4") and in KSampler ("24")."""
    parts = {"model": [model, 0], "vae": ["1", 2]}
    conditions = {"positive": ["3", positive], "negative": ["3", negative]}
    how = {"seed": 3, "steps": 3, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    region = {"region": "auto", "context": 1.8, "resolution": 0, "blend": -1, "similarity": 2.0}
    photo = {"image": ["2", 0], "mask": ["2", 1]}
    small = {"width": 64, "height": 64, "upscale_method": "area", "crop": "disabled"}
    inpaint = {"pixels": ["21", 0], "mask": ["2", 1], "vae": ["1", 2], "noise_mask": False}
    loader = {"checkpoint": "bundled demo", "weight_dtype": "default", "attention": "auto"}
    encoder = {"encoder": ["1", 1], "exemplar": ["2", 2], "fit": "squash", "merge": "one each"}
    return {
        "1": {"class_type": "PBELoader", "inputs": loader},
        "2": {"class_type": "PBEExampleInputs", "inputs": {"scene": "meadow"}},
        "3": {"class_type": "PBEExemplarEncoder", "inputs": encoder},
        "4": {
            "class_type": "PBEInpaintSampler",
            "inputs": parts | conditions | how | region | photo,
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        "21": {"class_type": "ImageScale", "inputs": small | {"image": ["2", 0]}},
        "22": {"class_type": "InpaintModelConditioning", "inputs": conditions | inpaint},
        "24": {
            "class_type": "KSampler",
            "inputs": how
            | {"model": [model, 0], "cfg": 2.0, "latent_image": ["22", 2]}
            | {"positive": ["22", 0], "negative": ["22", 1]},
        },
        "25": {"class_type": "VAEDecode", "inputs": {"samples": ["24", 0], "vae": ["1", 2]}},
        "26": {"class_type": "PreviewImage", "inputs": {"images": ["25", 0]}},
    }


def only(prompt: Prompt, sampler: str) -> Prompt:
    """The part of the graph that ends in one of its two samplers."""
    left = {"4": ("21", "22", "24", "25", "26"), "24": ("4", "5")}[sampler]
    return {name: node for name, node in prompt.items() if name not in left}


def patched(kind: str, **inputs) -> Prompt:
    node = {"class_type": kind, "inputs": {"model": ["1", 0], **inputs}}
    return graph(model="9") | {"9": node}


@pytest.mark.parametrize("sampler", ["4", "24"])
def test_a_patch_without_effect_is_named_below_the_sampler_once_a_run(host: Host, sampler: str):
    prompt = patched(
        "SkipLayerGuidanceDiT", double_layers="7", single_layers="", scale=3.0, start_percent=0.0,
        end_percent=1.0, rescaling_scale=0.0,
    )  # fmt: skip
    for seed in (3, 4):  # and again in the next run
        prompt[sampler]["inputs"]["seed"] = seed
        run = host.run(only(prompt, sampler))
        assert run.error is None, run.error_text
        (said,) = [text for node, text in run.texts if node == sampler]
        assert said.startswith("SkipLayerGuidanceDiT has no effect: this model's network has none")


def test_a_patch_that_finds_nothing_is_named(host: Host):
    """It merges tokens at the latent's full size, where the bundled model has no attention."""
    run = host.run(only(patched("TomePatchModel", ratio=0.3), "4"))
    assert run.error is None, run.error_text
    ((node, said),) = run.texts
    assert node == "4" and said.startswith("TomePatchModel changed nothing: ")


def test_a_patch_that_works_is_not_named(host: Host):
    plain = host.run(only(graph(), "4"))
    run = host.run(only(patched("PerturbedAttentionGuidance", scale=3.0), "4"))
    assert run.error is None and plain.error is None, run.error_text + plain.error_text
    assert run.texts == plain.texts == []
    (before,), (after,) = host.images(plain, "5"), host.images(run, "5")
    assert (before != after).any()


@pytest.mark.parametrize("sampler", ["4", "24"])
def test_positive_and_negative_swapped_is_one_sentence(host: Host, sampler: str):
    run = host.run(only(graph(positive=1, negative=0), sampler))
    assert run.error_text.startswith("positive and negative are swapped")
    assert "connect the positive of Exemplar Encoder to positive" in run.error_text


@pytest.mark.parametrize("sampler", ["4", "24"])
def test_a_zeroed_negative_is_one_sentence(host: Host, sampler: str):
    """As graphs for other models have it."""
    prompt = graph()
    prompt["30"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["3", 0]}}
    prompt["4" if sampler == "4" else "22"]["inputs"]["negative"] = ["30", 0]
    run = host.run(only(prompt, sampler))
    assert run.error_text == (
        "negative holds zeros, as ConditioningZeroOut makes them, which mean nothing to this "
        "model; connect the negative of an Exemplar Encoder"
    )


@pytest.mark.parametrize("sampler", ["4", "24"])
def test_a_positive_connected_twice_is_said(host: Host, sampler: str):
    run = host.run(only(graph(positive=0, negative=0), sampler))
    assert run.error is None, run.error_text
    ((node, said),) = run.texts
    assert node == sampler and said.startswith("positive and negative are the same, so similarity")
