"""Patches of the host's nodes on our MODEL and on the host's own SD 1.5, with the same weights.

With zeros for the five channels of photo and mask our denoiser is Stable Diffusion's, so each patch
has to give the same latents on both. The networks have the shape of SD 1.5 at a tenth of its width.
Runs inside the host's interpreter, see `checks.py`; `test_native.py` compares the results with the
tables in docs/nodes.md: differences by name, sentences by name, and checks as in `adapter_checks`.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapter_checks import adapter, ours, random_weights, run  # starts the host's modules

# isort: split
import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.t2i_adapter.adapter
import comfy_extras.nodes_apg
import comfy_extras.nodes_attention_multiply
import comfy_extras.nodes_cfg
import comfy_extras.nodes_easycache
import comfy_extras.nodes_eps
import comfy_extras.nodes_freelunch
import comfy_extras.nodes_fresca
import comfy_extras.nodes_hypernetwork
import comfy_extras.nodes_hypertile
import comfy_extras.nodes_lumina2
import comfy_extras.nodes_mahiro
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_model_downscale
import comfy_extras.nodes_model_merging
import comfy_extras.nodes_nag
import comfy_extras.nodes_pag
import comfy_extras.nodes_perpneg
import comfy_extras.nodes_sag
import comfy_extras.nodes_slg
import comfy_extras.nodes_tcfg
import comfy_extras.nodes_tomesd
import folder_paths
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper

extras = comfy_extras
SIDE, WIDTH, TOKEN = 16, 32, 64  # of the latent, of the first level, of a token
CPU = torch.device("cpu")
V1 = ours("pbe_model.config").V1
SIZES = replace(V1, unet=replace(V1.unet, model_channels=WIDTH, context_dim=TOKEN))
FIRST = "input_blocks.0.0.weight"
Apply = Callable[[Any], Any]


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Random, with zeros for photo and mask."""
    with torch.device("meta"):
        unet = ours("pbe_model.networks.unet").UNet(SIZES.unet)
    drawn = random_weights({n: t.shape for n, t in unet.state_dict().items()}, seed)
    drawn[FIRST][:, 4:] = 0
    return drawn


def our_model(seed: int, dtype: torch.dtype = torch.float32):
    return adapter.load_model(SIZES, weights(seed), comfy.latent_formats.SD15(), weight_dtype=dtype)


def host_model(
    seed: int, dtype: torch.dtype = torch.float32, compute_dtype: torch.dtype | None = None
):
    """Stable Diffusion 1.5 of the host."""
    sizes = ours("nodes.adapter.denoiser").host_sizes(SIZES.unet) | {"in_channels": 4}
    config = comfy.supported_models.SD15(sizes)
    config.set_inference_dtype(dtype, compute_dtype)
    model = config.get_model({}, device=CPU)
    drawn = weights(seed)
    drawn[FIRST] = drawn[FIRST][:, :4].clone()
    model.diffusion_model.load_state_dict(drawn, strict=True)
    return comfy.model_patcher.CoreModelPatcher(model, load_device=CPU, offload_device=CPU)


def latents(model, tokens: int = 1, steps: int = 3, control=None) -> torch.Tensor:
    """A guided run from noise."""
    generator = torch.Generator().manual_seed(tokens)
    contexts = torch.randn(2, tokens, TOKEN, generator=generator).split(1)
    entries = {}
    if hasattr(model.model, "attention_places"):  # ours, which sees a photo
        entries["concat_latent_image"] = torch.randn(1, 4, SIDE, SIDE)
        entries["concat_mask"] = torch.ones(1, 8 * SIDE, 8 * SIDE)
    if control is not None:
        entries |= {"control": control, "control_apply_to_uncond": True}
    conditions = [
        [[context, tag | entries] for context, tag in conditioning]
        for conditioning in adapter.tagged(*contexts)
    ]
    noise = torch.randn(1, 4, SIDE, SIDE, generator=generator)
    torch.manual_seed(0)  # some patches draw numbers
    return comfy.sample.sample(
        model, noise, steps, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise),
        disable_pbar=True, seed=0,
    )  # fmt: skip


def node(module, name: str, *arguments) -> Apply:
    """A node of the host's newer kind as a function from MODEL to MODEL."""
    cls = getattr(module, name)

    def apply(model):
        output = cls.execute(model, *arguments)
        return (output if isinstance(output, tuple) else output.args)[0]

    return apply


def merged(name: str, *arguments) -> Apply:
    """A node that merges the MODEL with another one of its kind."""

    def apply(model):
        other = (our_model if hasattr(model.model, "attention_places") else host_model)(5)
        nodes = extras.nodes_model_merging.NODE_CLASS_MAPPINGS
        return nodes[name]().merge(model, other, *arguments)[0]

    return apply


def blocks_merged(model):
    other = (our_model if hasattr(model.model, "attention_places") else host_model)(5)
    nodes = extras.nodes_model_merging.NODE_CLASS_MAPPINGS
    return nodes["ModelMergeBlocks"]().merge(model, other, input=0.3, middle=0.8, out=0.5)[0]


def sampling_of(name: str, *arguments) -> Apply:
    nodes = extras.nodes_model_advanced.NODE_CLASS_MAPPINGS
    return lambda model: nodes[name]().patch(model, *arguments)[0]


def compiled(model):
    """As TorchCompileModel does it, without a compiler for C."""
    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return model


def hypernetwork(model):
    """With weights for the tokens and for the first level."""
    generator = torch.Generator().manual_seed(3)
    layers = {
        width: [
            {"linear.0.weight": torch.randn(width, width, generator=generator) * 0.2,
             "linear.0.bias": torch.zeros(width)}
            for _ in range(2)
        ]
        for width in (WIDTH, TOKEN)
    }  # fmt: skip
    path = Path(folder_paths.get_temp_directory(), f"hypernetwork_{os.getpid()}.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(layers, path)
    try:
        patch = extras.nodes_hypernetwork.load_hypernetwork_patch(str(path), 0.7)
    finally:
        path.unlink()
    model = model.clone()
    model.set_model_attn1_patch(patch)
    model.set_model_attn2_patch(patch)
    return model


def lora(model):
    """In the names that trainers give it."""
    generator, tensors = torch.Generator().manual_seed(5), {}
    for name, rows, columns in (
        ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", WIDTH, WIDTH),
        ("mid_block_attentions_0_transformer_blocks_0_attn2_to_v", 4 * WIDTH, TOKEN),
    ):
        up = torch.randn(rows, 4, generator=generator)
        down = torch.randn(4, columns, generator=generator) * columns**-0.5
        tensors |= {f"lora_unet_{name}.lora_up.weight": up}
        tensors |= {f"lora_unet_{name}.lora_down.weight": down}
    return comfy.sd.load_lora_for_models(model, None, tensors, 0.8, 0)[0]


def attention_override(model):
    """One that is no softmax, as packs put them in."""
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda attend, q, k, v, *rest, **kw: 0.5 * attend(q * 1.5, k, v, *rest, **kw)
    )
    return model


ATTENTION = extras.nodes_attention_multiply
PATCHES: dict[str, Apply] = {
    "FreeU": node(extras.nodes_freelunch, "FreeU", 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": node(extras.nodes_freelunch, "FreeU_V2", 1.3, 1.4, 0.9, 0.2),
    "PerturbedAttentionGuidance": node(extras.nodes_pag, "PerturbedAttentionGuidance", 3.0),
    "SelfAttentionGuidance": node(extras.nodes_sag, "SelfAttentionGuidance", 0.5, 2.0),
    "NAGuidance": node(extras.nodes_nag, "NAGuidance", 5.0, 0.5, 1.5),
    "RenormCFG": node(extras.nodes_lumina2, "RenormCFG", 100.0, 1.0),
    "RescaleCFG": sampling_of("RescaleCFG", 0.7),
    "APG": node(extras.nodes_apg, "APG", 0.5, 5.0, 0.1),
    "CFGNorm": node(extras.nodes_cfg, "CFGNorm", 0.7),
    "CFGZeroStar": node(extras.nodes_cfg, "CFGZeroStar"),
    "TCFG": node(extras.nodes_tcfg, "TCFG"),
    "FreSca": node(extras.nodes_fresca, "FreSca", 1.0, 1.25, 3),
    "Mahiro": node(extras.nodes_mahiro, "Mahiro"),
    "EpsilonScaling": node(extras.nodes_eps, "EpsilonScaling", 1.05),
    "TemporalScoreRescaling": node(extras.nodes_eps, "TemporalScoreRescaling", 0.5, 1.0),
    "HyperTile": node(extras.nodes_hypertile, "HyperTile", 64, 2, 1, False),
    "TomePatchModel": node(extras.nodes_tomesd, "TomePatchModel", 0.3),
    "PatchModelAddDownscale": node(
        extras.nodes_model_downscale, "PatchModelAddDownscale",
        3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic",
    ),
    "EasyCache": node(extras.nodes_easycache, "EasyCacheNode", 1.5, 0.15, 0.95, False),
    "LazyCache": node(extras.nodes_easycache, "LazyCacheNode", 1.5, 0.15, 0.95, False),
    "UNetSelfAttentionMultiply": node(ATTENTION, "UNetSelfAttentionMultiply", 1.2, 1, 1, 0.8),
    "UNetCrossAttentionMultiply": node(ATTENTION, "UNetCrossAttentionMultiply", 1.2, 1, 1, 0.8),
    "HypernetworkLoader": hypernetwork,
    "LoraLoaderModelOnly": lora,
    "ModelSamplingDiscrete": sampling_of("ModelSamplingDiscrete", "v_prediction", False),
    "ModelAttentionBackend": sampling_of("ModelAttentionBackend", "pytorch attention"),
    "an attention override": attention_override,
    "TorchCompileModel": compiled,
    "ModelMergeSimple": merged("ModelMergeSimple", 0.4),
    "ModelMergeBlocks": blocks_merged,
    "ModelMergeSubtract": merged("ModelMergeSubtract", 0.5),
    "ModelMergeAdd": merged("ModelMergeAdd"),
}  # fmt: skip
EQUAL_WITHOUT = {"ModelAttentionBackend", "TorchCompileModel"}
"""What changes nothing but the speed."""


def control_net():
    sizes = ours("nodes.adapter.denoiser").host_sizes(SIZES.unet) | {"in_channels": 4}
    for name in ("out_channels", "transformer_depth_output"):
        sizes.pop(name)
    net = comfy.cldm.cldm.ControlNet(**sizes, hint_channels=3, dtype=torch.float32)
    net.load_state_dict(random_weights({n: t.shape for n, t in net.state_dict().items()}, 7))
    return comfy.controlnet.ControlNet(net, load_device=CPU)


def t2i_adapter(width: int = WIDTH):
    channels = [width, 2 * width, 4 * width, 4 * width]
    net = comfy.t2i_adapter.adapter.Adapter(
        cin=192, channels=channels, nums_rb=2, ksize=1, sk=True, use_conv=False, xl=False
    )
    net.load_state_dict(random_weights({n: t.shape for n, t in net.state_dict().items()}, 8))
    return comfy.controlnet.T2IAdapter(net, net.input_channels, 8, "nearest-exact")


def hinted(control):
    hint = torch.rand(1, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(2))
    return control.set_cond_hint(hint, 0.6, (0.0, 1.0))


CONTROLS = {"ControlNetApplyAdvanced, a ControlNet": control_net,
            "ControlNetApplyAdvanced, a T2I adapter": t2i_adapter}  # fmt: skip


def ip_adapter(width: int = WIDTH, token: int = TOKEN) -> Apply | None:
    """IPAdapterEmbeds of the real pack, with random weights; None where the pack is not."""
    beside = Path.cwd().parent / "ComfyUI_IPAdapter_plus"
    pack = Path(os.environ.get("IPADAPTER_PATH", beside))
    if not (pack / "IPAdapterPlus.py").is_file():
        return None
    if "ipadapter_plus" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "ipadapter_plus", pack / "__init__.py", submodule_search_locations=[str(pack)]
        )
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    widths = [1, 1, 2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1, 4]  # down, up, middle
    shapes = {
        f"{2 * i + 1}.to_{part}_ip.weight": torch.Size((width * mult, token))
        for i, mult in enumerate(widths)
        for part in "kv"
    }
    image = {"proj.weight": (4 * token, 48), "proj.bias": (4 * token,)}
    image |= {"norm.weight": (token,), "norm.bias": (token,)}
    file = {
        "ip_adapter": random_weights(shapes, 9),
        "image_proj": random_weights({n: torch.Size(s) for n, s in image.items()}, 10),
    }
    generator = torch.Generator().manual_seed(11)
    embeds = torch.randn(2, 1, 48, generator=generator)
    apply = sys.modules["ipadapter_plus"].NODE_CLASS_MAPPINGS["IPAdapterEmbeds"]().apply_ipadapter
    return lambda model: apply(
        model, file, embeds[0], 0.8, "linear", 0.0, 1.0, neg_embed=embeds[1]
    )[0]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.isfinite().all() and b.isfinite().all()
    return float((a - b).abs().max() / b.abs().max())


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Our warnings in the host's log."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.addFilter(lambda record: record.filename == "page.py")
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


def differences() -> dict[str, float | str]:
    """For each patch: how far our latents are from the host's, with one token and with several."""
    found: dict[str, float | str] = {}
    mine, theirs = our_model(0), host_model(0)
    without = functools.cache(lambda tokens, steps: latents(theirs, tokens, steps))
    cases: dict[str, tuple[Apply, Callable[[], Any]]] = {
        name: (apply, lambda: None) for name, apply in PATCHES.items()
    }
    cases |= {
        name: (lambda model: model, lambda make=make: hinted(make()))
        for name, make in CONTROLS.items()
    }
    if (real := ip_adapter()) is not None:
        cases["IPAdapterEmbeds of ComfyUI_IPAdapter_plus"] = (real, lambda: None)
    for name, (apply, control) in cases.items():
        steps = 12 if name.endswith("Cache") else 3
        try:
            worst = 0.0
            patched, expecting = apply(mine), apply(theirs)
            for tokens in (1, 5):
                with logged() as lines:
                    ours_ = latents(patched, tokens, steps, control())
                assert not lines, lines
                expected = latents(expecting, tokens, steps, control())
                worst = max(worst, relative(ours_, expected))
                changed = relative(expected, without(tokens, steps))
                assert name in EQUAL_WITHOUT or changed > 1e-3, "no effect on the host's own model"
            found[name] = worst
        except Exception:  # the test of the table reports it
            found[name] = traceback.format_exc()
    return found


def small_model():
    """A network with levels of one width and no attention on top, and a run of it."""
    config = ours("pbe_model.config").DEMO
    sizes = {"channel_mult": (1, 1, 1), "attention_resolutions": (2, 4), "norm_groups": 8}
    config = replace(config, unet=replace(config.unet, model_channels=WIDTH, **sizes))
    with torch.device("meta"):
        unet = ours("pbe_model.networks.unet").UNet(config.unet)
    drawn = random_weights({n: t.shape for n, t in unet.state_dict().items()}, 0)
    latent_format = comfy.latent_formats.SD15()
    latent_format.latent_channels = 16
    model = adapter.load_model(config, drawn, latent_format, weight_dtype=torch.float32)

    def run(model, control=None) -> torch.Tensor:
        photo = {
            "concat_latent_image": torch.randn(1, 16, SIDE, SIDE),
            "concat_mask": torch.ones(1, 8 * SIDE, 8 * SIDE),
        } | ({} if control is None else {"control": control, "control_apply_to_uncond": True})
        conditions = [
            [[context, tag | photo] for context, tag in conditioning]
            for conditioning in adapter.tagged(*torch.randn(2, 1, 384).split(1))
        ]
        noise = torch.randn(1, 16, SIDE, SIDE)
        return comfy.sample.sample(
            model, noise, 3, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip

    return model, run


def said(function: Callable[[], Any]) -> str:
    """The error of a call, or what it has logged."""
    with logged() as lines:
        try:
            function()
        except ValueError as error:
            return str(error)
    return "\n".join(lines)


def sentences() -> dict[str, str]:
    """What users read where something cannot apply."""
    slg, perp_neg = extras.nodes_slg, extras.nodes_perpneg
    model, (small, run) = our_model(0), small_model()
    text = [[torch.randn(1, 77, TOKEN), {"pooled_output": None}]]
    cases = {
        "SkipLayerGuidanceDiT": lambda: latents(
            node(slg, "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "7, 8", "", 0.0)(model)
        ),
        "SkipLayerGuidanceDiTSimple": lambda: latents(
            node(slg, "SkipLayerGuidanceDiTSimple", 0.0, 1.0, "7", "9")(model)
        ),
        "PerpNeg with a text prompt": lambda: latents(
            node(perp_neg, "PerpNeg", text, 1.0)(model)
        ),
        "ModelMergeSimple with SD 1.5": lambda: latents(
            extras.nodes_model_merging.NODE_CLASS_MAPPINGS["ModelMergeSimple"]().merge(
                model, host_model(5), 0.5
            )[0]
        ),
        "FreeU, small model": lambda: run(PATCHES["FreeU"](small)),
        "FreeU_V2, small model": lambda: run(PATCHES["FreeU_V2"](small)),
        "HyperTile, small model": lambda: run(
            node(extras.nodes_hypertile, "HyperTile", 256, 2, 0, False)(small)
        ),
        "TomePatchModel, small model": lambda: run(PATCHES["TomePatchModel"](small)),
        "a ControlNet for SD 1.x, small model": lambda: run(small, hinted(control_net())),
        "a T2I adapter for SD 1.x, small model": lambda: run(small, hinted(t2i_adapter(48))),
    }  # fmt: skip
    if (real := ip_adapter(48)) is not None:
        cases["IPAdapterEmbeds, small model"] = lambda: run(real(small))
    return {name: said(case) for name, case in cases.items()}


def check_the_kinds_of_patches_are_the_host_s(_: None) -> None:
    """Those that the source of the host's UNet asks for."""
    folder = Path(comfy.ldm.modules.attention.__file__).parent
    files = [folder / "attention.py", folder / "diffusionmodules/openaimodel.py"]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    asked = set(re.findall(r'"(\w+_patch\w*)" in transformer_', source))
    asked |= set(re.findall(r'"(\w+_patch\w*)" in transformer_options\["patches"\]', source))
    assert len(asked) > 8 and asked == ours("nodes.adapter.patches").PATCHES, asked


def check_the_places_are_the_host_s(_: None) -> None:
    """Every attention that a forward pass comes to, and no other."""
    model, seen = our_model(0), set()

    def see(q, k, v, options):
        seen.add((*options["block"], options["block_index"]))
        return v[:, :1].expand(-1, q.shape[1], -1)

    class Everywhere(dict):
        def __contains__(self, key):
            return True

        def __getitem__(self, key):
            return see

    model.model.diffusion_model(
        torch.randn(1, 9, SIDE, SIDE), torch.tensor([3.0]), context=torch.randn(1, 1, TOKEN),
        transformer_options={"patches_replace": {"attn1": Everywhere()}},
    )  # fmt: skip
    assert len(seen) == 16
    assert seen | {place[:2] for place in seen} == model.model.attention_places


def check_a_text_prompt_is_refused(_: None) -> None:
    """As positive and as negative, in any of the host's samplers, at the official width."""
    model = our_model(0)
    photo = {
        "concat_latent_image": torch.randn(1, 4, SIDE, SIDE),
        "concat_mask": torch.ones(1, 8 * SIDE, 8 * SIDE),
    }
    positive, negative = adapter.tagged(*torch.randn(2, 1, TOKEN).split(1))
    text = [[torch.randn(1, 77, TOKEN), {"pooled_output": None}]]
    noise = torch.randn(1, 4, SIDE, SIDE)

    def sample(*conditionings) -> None:
        conditions = [
            [[tokens, entries | photo] for tokens, entries in conditioning]
            for conditioning in conditionings
        ]
        comfy.sample.sample(
            model, noise, 1, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip

    assert said(lambda: sample(positive, negative)) == ""
    for name, wires in (("positive", (text, negative)), ("negative", (positive, text))):
        error = said(lambda wires=wires: sample(*wires))
        assert error.startswith(f"{name} is not an exemplar") and "text prompt (77 tokens)" in error
    assert said(lambda: sample(negative, negative)) == ""  # no exemplar at all
    assert said(lambda: sample(negative, positive)).startswith("positive and negative are swapped")
    wide = adapter.tagged(*torch.randn(2, 1, TOKEN + 1).split(1))
    assert "tokens of 65 numbers, but the model takes 64" in said(lambda: sample(*wide))


def results() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with torch.inference_mode():
        found["differences"] = differences()
        found["sentences"] = sentences()
    found["checks"] = run(lambda: None, globals())
    return found
