"""Checks of `nodes.adapter` that run inside the host's interpreter, see `checks.py`.

Their results are the name of each check, and None or the traceback of its failure. What HTTP cannot
see is checked here: what the host's UNet is fed, which way its attention goes, and agreement with
the package's far below a grey level.
"""

import copy
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

COMFYUI, PACK = sys.argv[1:3]
os.chdir(COMFYUI)
sys.path.insert(0, COMFYUI)
sys.argv = ["main.py", "--cpu"]  # read by the host's own argument parser at import

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.latent_formats  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_api.torch_helpers import set_torch_compile_wrapper  # noqa: E402

import nodes as host_nodes  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "/custom_nodes/under-test", os.path.join(PACK, "__init__.py"), submodule_search_locations=[PACK]
)
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])


def ours(name: str):
    """A module of the pack, under the arbitrary name it was loaded by."""
    return importlib.import_module(f"{spec.name}.{name}")


adapter = ours("nodes.adapter")
TINY = ours("pbe_model.config").TINY
TINY = replace(TINY, vae=replace(TINY.vae, scale_factor=0.7))  # not 1, so that it shows
SIDE = 64 // TINY.vae.downscale  # of the latent of 64 pixels


class Parts:
    """A tiny model with random weights, plain and in the host's clothes, and inputs for both."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.plain = ours("pbe_model.model").PaintByExample(TINY).eval()
        vae = adapter.load_vae(TINY.vae, self.plain.vae.state_dict())
        latent_format = adapter.latent_format(TINY.vae, vae)
        self.model = adapter.load_model(TINY, self.plain.unet.state_dict(), latent_format)
        self.unet = self.model.model.diffusion_model
        self.row = torch.randn(1, 9, SIDE, SIDE)
        self.context = torch.randn(2, 1, TINY.unet.context_dim)
        self.timesteps = torch.tensor([500.0, 500.0])

    def output(self, x: torch.Tensor, **options) -> torch.Tensor:
        """Of the host's UNet."""
        return self.unet(x, self.timesteps, context=self.context, **options)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """Of the package's UNet."""
        return self.plain.unet(x, self.timesteps, self.context)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value."""
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"differs by {error:.2e}"


def random_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Of a size that keeps activations in bounds, none of them 0 or 1."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 25
        weights[name] = tensor * fan_in**-0.5 + (tensor.ndim == 1 and name.endswith("weight"))
    return weights


def agree(config, weights: dict[str, torch.Tensor] | None = None, attention="auto") -> None:
    """The host's UNet and the package's, one token and several, even sides and odd ones."""
    plain = ours("pbe_model.networks.unet").UNet(config.unet).eval()
    weights = weights or random_weights({n: t.shape for n, t in plain.state_dict().items()}, 0)
    plain.load_state_dict(weights)
    model = adapter.load_model(
        config, weights, comfy.latent_formats.SD15(), weight_dtype=torch.float32,
        attention=attention,
    )  # fmt: skip
    options = model.model_options["transformer_options"]
    for tokens, sides in ((1, (8, 8)), (257, (8, 8)), (1, (7, 10))):
        x = torch.randn(2, config.unet.in_channels, *sides)
        context, timesteps = torch.randn(2, tokens, config.unet.context_dim), torch.tensor([3, 981])
        found = model.model.diffusion_model(
            x, timesteps, context=context, transformer_options=dict(options)
        )
        close(found, plain(x, timesteps, context))


def check_the_host_s_network_is_the_package_s(_: Parts) -> None:
    """The official layout, and layouts of other widths, groups, levels and latents."""
    config = ours("pbe_model.config")
    official = config.V1.unet
    for sizes in (
        replace(official, model_channels=32, context_dim=64),
        replace(official, model_channels=16, norm_groups=4, num_heads=2, channel_mult=(1, 3)),
        replace(official, model_channels=32, channel_mult=(2, 2, 1), attention_resolutions=(4,)),
        config.TINY.unet,
    ):
        agree(replace(config.V1, unet=sizes, tokens="all"))
    agree(replace(config.DEMO, unet=replace(config.DEMO.unet, model_channels=32)))
    agree(TINY, attention="pytorch")


def check_the_bundled_network_is_the_package_s(_: Parts) -> None:
    plain = ours("pbe_model.model").PaintByExample.from_checkpoint()
    agree(plain.config, plain.unet.state_dict())


def check_one_token_takes_the_shortcut_and_others_do_not(parts: Parts) -> None:
    """Counted by a backend of the loader, which is a softmax, and by one that need not be."""
    module = ours("nodes.adapter.attention")
    plain = ours("pbe_model.networks.attention").sdpa_attention
    keys = []

    def backend(q, k, v, heads):
        keys.append(k.shape[1])
        return plain(q, k, v, heads)

    def foreign(attend, q, k, v, *args, **kwargs):
        keys.append(k.shape[1])
        return attend(q, k, v, *args, **kwargs)

    def count(override, tokens: int) -> int:
        keys.clear()
        context = parts.context[:1, :1].repeat(1, tokens, 1)
        options = {"optimized_attention_override": override}
        output = parts.unet(
            parts.row, parts.timesteps[:1], context=context, transformer_options=options
        )
        close(output, parts.plain.unet(parts.row, parts.timesteps[:1], context))
        return keys.count(tokens)

    ours_, blocks = module.AttentionOverride(backend), len(parts.model.model.attention_places) // 2
    assert blocks > 5
    assert count(ours_, 1) == 0 and len(keys) == blocks
    assert count(ours_, 3) == blocks and len(keys) == 2 * blocks
    assert count(foreign, 1) == blocks and len(keys) == 2 * blocks


def check_patches_of_the_cross_attention_see_one_token(parts: Parts) -> None:
    """Added tokens take the general way, replacements are called, outputs can be written into."""
    context, x, t = parts.context[:1], parts.row, parts.timesteps[:1]
    extra = torch.randn(1, 4, TINY.unet.context_dim)
    more = torch.cat([context, extra], dim=1)

    def add(n, context, value, options):
        return n, more.expand(len(n), -1, -1), more.expand(len(n), -1, -1)

    def output(**options) -> torch.Tensor:
        return parts.unet(x, t, context=context, transformer_options=options)

    close(output(patches={"attn2_patch": [add]}), parts.plain.unet(x, t, more))

    def replace_(q, k, v, options):
        return v.expand(-1, q.shape[1], -1)

    blocks = {place: replace_ for place in parts.model.model.attention_places}
    close(output(patches_replace={"attn2": blocks}), parts.plain.unet(x, t, context))

    def halve(n, options):
        n *= 0.5
        return n

    halved = output(patches={"attn2_output_patch": [halve]})
    weights = parts.plain.unet.state_dict()
    halves = {n: w * (0.5 if ".attn2.to_out." in n else 1) for n, w in weights.items()}
    other = copy.deepcopy(parts.plain.unet)
    other.load_state_dict(halves)
    close(halved, other(x, t, context))


def check_xformers_is_the_package_s(parts: Parts) -> None:
    """With its kernel replaced, since there is none on a CPU."""
    attention = ours("pbe_model.networks.attention")
    module, calls = ours("nodes.adapter.attention"), []

    def kernel(q, k, v, heads):
        calls.append(heads)
        return attention.sdpa_attention(q, k, v, heads)

    before = module.select_attention
    chosen = []

    def select(name, device):
        chosen.append(name)
        return kernel

    module.select_attention = select
    try:
        model = adapter.load_model(
            TINY, parts.plain.unet.state_dict(), comfy.latent_formats.SD15(), attention="xformers"
        )
    finally:
        module.select_attention = before
    options = model.clone().model_options["transformer_options"]
    x = parts.row.repeat(2, 1, 1, 1)
    found = model.model.diffusion_model(
        x, parts.timesteps, context=parts.context, transformer_options=dict(options)
    )
    close(found, parts.expected(x))
    assert chosen == ["xformers"] and len(calls) > 5
    # What the package's function cannot do is the host's again: a mask, heads apart already.
    q, mask = torch.randn(1, 4, 8), torch.zeros(1, 4, 4)
    override, calls = options["optimized_attention_override"], []
    for arguments, keywords in (((mask,), {}), ((), {"mask": mask}), ((), {"skip_reshape": True})):
        override(lambda *a, **k: calls.append(k), q, q, q, 2, *arguments, **keywords)
    assert len(calls) == 3


def check_a_control_net_reaches_every_row(parts: Parts) -> None:
    """Residuals of the first block: what adding them to its output gives."""
    x = parts.row.repeat(2, 1, 1, 1)
    residual = torch.randn(2, TINY.unet.model_channels, SIDE, SIDE)
    control = {"input": [residual], "middle": [], "output": []}
    hook = parts.plain.unet.input_blocks[0][0].register_forward_hook(lambda *a: a[-1] + residual)
    expected = parts.expected(x)
    hook.remove()
    close(parts.output(x, control=control), expected)
    assert not torch.allclose(expected, parts.expected(x))


def check_the_keep_mask_comes_last_and_is_not_rounded(parts: Parts) -> None:
    mask = ours("pbe_model.networks.masked_inputs")
    hole_mask = torch.zeros(1, 64, 64)
    hole_mask[:, 10:41, 6:50] = 0.9
    masked = torch.randn(1, 4, SIDE, SIDE)
    channels = parts.model.model.concat_cond(
        noise=torch.zeros(2, 4, SIDE, SIDE),
        device=torch.device("cpu"),
        concat_latent_image=masked,
        concat_mask=hole_mask,
    )
    assert channels.shape == (2, 5, SIDE, SIDE)
    close(channels[:1, :4], masked * TINY.vae.scale_factor)
    keep_mask = mask.latent_keep_mask(hole_mask[:, None], (SIDE, SIDE))
    assert torch.equal(channels[:1, 4:], keep_mask)
    assert ((keep_mask > 0) & (keep_mask < 1)).any()


def check_latents_are_those_of_our_sampler(parts: Parts) -> None:
    """On whole timesteps, to which the host rounds; the samplers are written independently."""
    schedule, samplers = ours("pbe_model.sampling.schedule"), ours("pbe_model.sampling.samplers")
    mask = ours("pbe_model.networks.masked_inputs")
    hole_mask = torch.zeros(1, 64, 64)
    hole_mask[:, 16:48, 16:48] = 1
    masked, noise = torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 4, SIDE, SIDE)
    positive, negative = parts.context.split(1)
    latent = adapter.sample(
        parts.model,
        *adapter.tagged(positive, negative),
        masked_latent=masked,
        hole_mask=hole_mask,
        init_latent=None,
        noise=noise,
        seed=0,
        steps=6,
        similarity=2.0,
        sampler="dpmpp_2m",
        scheduler="karras",
        denoise=1.0,
    )

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        keep_mask = mask.latent_keep_mask(hole_mask[:, None], (SIDE, SIDE))
        scaled = masked * TINY.vae.scale_factor
        eps = parts.plain.predict_noise(x, t, scaled, keep_mask, torch.cat([negative, positive]))
        without, exemplar = eps.chunk(2)
        return without + 2.0 * (exemplar - without)

    grid = schedule.karras_grid(parts.plain.schedule, 6)
    whole = schedule.SamplingGrid(tuple(float(round(t)) for t in grid.timesteps), grid.alphas)
    expected = samplers.dpmpp_2m(denoise, noise, whole) / TINY.vae.scale_factor
    close(latent, expected, 1e-4)


def check_a_time_range_on_one_of_a_list(parts: Parts) -> None:
    """As on one of two encodings that the host's node has combined."""
    positive, negative = adapter.tagged(parts.context, torch.randn(1, 1, TINY.unet.context_dim))
    rows = [adapter.tagged(row, row)[0] for row in parts.context.split(1)]
    combine = host_nodes.ConditioningCombine().combine
    later = host_nodes.ConditioningSetTimestepRange().set_range

    def latent(conditioning: list) -> torch.Tensor:
        return adapter.sample(
            parts.model,
            conditioning,
            negative,
            masked_latent=torch.ones(1, 4, SIDE, SIDE),
            hole_mask=torch.ones(1, 64, 64),
            init_latent=None,
            noise=torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
            seed=0,
            steps=4,
            similarity=8.0,
            sampler="euler",
            scheduler="normal",
            denoise=1.0,
        )

    one, two = (list(part) for part in zip(adapter.separate(positive), strict=True))
    both = latent(adapter.separate(positive))
    assert torch.equal(both, latent(combine(*rows)[0]))
    ranged = latent(combine(one, later(two, 0.5, 1.0)[0])[0])
    assert torch.equal(ranged, latent(combine(rows[0], later(rows[1], 0.5, 1.0)[0])[0]))
    for other in (both, latent(rows[0])):
        assert (ranged - other).abs().max() > 1e-3 * other.abs().max()
    weighted = adapter.separate(positive, [3.0, 0.0])
    assert len(weighted) == 1 and weighted[0][1]["strength"] == 3.0
    assert positive[0][1].keys() == one[0][1].keys()


def check_v_and_zero_terminal_snr_reach_the_host_s_sampling(parts: Parts) -> None:
    config = ours("pbe_model.config")
    for zero in (False, True):
        schedule = config.ScheduleConfig(prediction="v", zero_terminal_snr=zero)
        model = adapter.load_model(
            replace(TINY, schedule=schedule),
            parts.plain.unet.state_dict(),
            comfy.latent_formats.SD15(),
        )
        sampling = model.model.model_sampling
        sigmas = ours("pbe_model.sampling.schedule").NoiseSchedule.linear(schedule).sigmas.float()
        torch.testing.assert_close(sampling.sigmas, sigmas, rtol=1e-4, atol=0)
        x, said = torch.randn(2, 1, 4, SIDE, SIDE).unbind()
        for sigma in sampling.sigmas[[0, 500, -1]]:
            a = 1 / (1 + sigma**2)
            noisy = sampling.calculate_input(sigma, x)  # sqrt(a) x
            clean = a.sqrt() * noisy - (1 - a).sqrt() * said
            close(sampling.calculate_denoised(sigma, said, x), clean)
    assert not isinstance(parts.model.model.model_sampling, comfy.model_sampling.V_PREDICTION)


def check_the_host_s_lora_names_fit_the_official_size(_: Parts) -> None:
    """The yardstick is its own detection of the architecture, which LoRA names follow."""
    unet_config = ours("pbe_model.config").V1.unet
    with torch.device("meta"):
        names = ours("pbe_model.networks.unet").UNet(unet_config).state_dict()
    detected = comfy.model_detection.detect_unet_config(names, "")
    described = ours("nodes.adapter.denoiser").host_sizes(unet_config)
    assert detected.items() <= described.items(), (detected, described)
    mapping = comfy.utils.unet_to_diffusers(described)
    assert len(mapping) > 700 and mapping == comfy.utils.unet_to_diffusers(detected)


def check_the_host_takes_our_adapters(parts: Parts) -> None:
    """Every name in a file of ours for the denoiser, on the host's own path of LoRA loaders."""
    lora = ours("pbe_model.checkpoints.lora")
    merged = copy.deepcopy(parts.plain)
    layers = {n: m for n, m in lora.adaptable(merged).items() if n.startswith("unet.")}
    tensors = {}
    for path, name in lora.names_in_file(layers, TINY).items():
        rows, *columns = layers[path].weight.shape
        up = torch.randn(rows, 2, *(1 for _ in columns[1:]))
        down = torch.randn(2, *columns) * 0.05
        tensors |= {
            name + lora.UP: up,
            name + lora.DOWN: down,
            name + lora.ALPHA: torch.tensor(1.0),
        }
        lora.merge(path, layers[path].weight, up, down, 0.7 / 2)
    latent_format = comfy.latent_formats.SD15()
    weights = parts.plain.unet.state_dict()  # of a model that no check before has loaded
    model = adapter.load_model(TINY, weights, latent_format, attention="pytorch")
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(tensors, known)
    assert len(patches) == len(layers) > 100, (len(patches), len(layers))
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 0.7, 0)
    patched.patch_model(torch.device("cpu"))
    x, context = parts.row, parts.context[:1]
    output = patched.model.diffusion_model(x, parts.timesteps[:1], context=context)
    patched.unpatch_model(torch.device("cpu"))
    close(output, merged.unet(x, parts.timesteps[:1], context), 1e-4)
    plain = parts.plain.unet(x, parts.timesteps[:1], context)
    assert (output - plain).abs().max() > 0.01 * plain.abs().max()


def check_the_vae_is_ours(parts: Parts) -> None:
    vae = adapter.load_vae(TINY.vae, parts.plain.vae.state_dict())
    image = torch.rand(1, 48, 64, 3)
    latent = vae.encode(image)
    close(latent, parts.plain.vae.encode(image.movedim(-1, 1) * 2 - 1).mean)
    decoded = parts.plain.vae.decode(latent).movedim(1, -1)
    close(vae.decode(latent), (decoded / 2 + 0.5).clamp(0, 1))


def check_the_host_can_load_the_model_once_more(_: Parts) -> None:
    """As it does to compile a model whose weights it would else stream, or for a second card."""
    loader = ours("nodes.loader")
    model = loader.PBELoader.execute(loader.BUNDLED_CHOICE, "default", "auto").args[0]
    again = model.clone(force_deepcopy=True)
    assert type(again.model) is type(model.model) and again.model is not model.model
    weights = model.model.diffusion_model.state_dict()
    for name, tensor in again.model.diffusion_model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def check_it_compiles_as_one_graph(parts: Parts) -> None:
    """As TorchCompileModel does it; with the default attention of a GPU, not that of `--cpu`."""
    latent_format = comfy.latent_formats.SD15()
    weights = parts.plain.unet.state_dict()
    model = adapter.load_model(TINY, weights, latent_format, attention="pytorch")
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", fullgraph=True)
    photo = {
        "concat_latent_image": torch.randn(1, 4, SIDE, SIDE),
        "concat_mask": torch.ones(1, 64, 64),
    }
    conditions = [
        [[tokens, entries | photo] for tokens, entries in conditioning]
        for conditioning in adapter.tagged(*parts.context.split(1))
    ]
    noise = torch.randn(1, 4, SIDE, SIDE)
    results = [
        comfy.sample.sample(
            each, noise, 2, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )
        for each in (compiled, model)
    ]  # fmt: skip
    close(*results)


def check_pictures_with_opacity_look_as_on_white(_: Parts) -> None:
    convert = ours("nodes.convert")
    colour, alpha = torch.rand(2, 12, 10, 3), torch.rand(2, 12, 10)
    close(
        convert.rgb(torch.cat([colour, alpha[..., None]], -1)), 1 - alpha[..., None] * (1 - colour)
    )
    grey = torch.stack([colour[..., 0], alpha], -1)
    close(convert.rgb(grey), (1 - alpha * (1 - colour[..., 0]))[..., None].expand(-1, -1, -1, 3))
    assert torch.equal(convert.rgb(colour), colour)
    opaque = torch.cat([colour, torch.ones(2, 12, 10, 1)], -1)
    assert torch.equal(convert.rgb(opaque), colour)
    assert convert.colour_and_opacity(opaque)[1] is None


def check_a_picture_is_the_mask_that_it_shows(_: Parts) -> None:
    convert, hole = ours("nodes.convert"), torch.zeros(1, 40, 50)
    hole[:, 10:20, 15:30] = 1
    strokes = torch.cat([torch.zeros(1, 40, 50, 3), 0.5 * hole[..., None]], -1)
    erased = torch.cat([torch.rand(1, 40, 50, 3), 1 - hole[..., None]], -1)
    black_and_white = hole[..., None].expand(-1, -1, -1, 3)
    for picture in (strokes, erased, black_and_white, hole[..., None]):
        close(convert.as_mask(picture), hole)
        close(convert.as_mask(picture.repeat(3, 1, 1, 1)), hole.repeat(3, 1, 1))
    for mask in (hole, hole[0], hole[None]):
        assert convert.as_mask(mask) is mask
    widgets = ("as is", 0, 0, False, 0, 1)
    close(ours("nodes.mask").PBEMaskAugmenter.execute(strokes, *widgets).args[0], hole)


def run(make_parts: Callable[[], Any], module: dict[str, Any]) -> dict[str, str | None]:
    """Run every check of a module on the same parts."""
    found: dict[str, str | None] = {}
    with torch.inference_mode():
        parts = make_parts()
        for name, check in list(module.items()):
            if name.startswith("check_"):
                try:
                    check(parts)
                    found[name] = None
                except Exception:  # reported by the test of that name
                    found[name] = traceback.format_exc()
    return found


def results() -> dict[str, str | None]:
    return run(Parts, globals())
