"""Checks of `nodes.adapter` that run inside the host's interpreter; `test_native.py` starts this.

Usage: `python adapter_checks.py COMFYUI PACK`. Prints a JSON object: the name of each check, and
None or the traceback of its failure. What HTTP cannot see is checked here: which rows the UNet
really computes, what it is fed, and agreement far below a grey level.
"""

import copy
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

COMFYUI, PACK = sys.argv[1:]
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
GUIDED = {"cond_or_uncond": [1, 0]}
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

    def computed_rows(self, x: torch.Tensor, **options) -> tuple[torch.Tensor, int]:
        """Output of the host's UNet, and how many rows its first layer saw."""
        seen = []
        first = self.unet.input_blocks[0][0]
        hook = first.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
        try:
            output = self.unet(x, self.timesteps, context=self.context, **options)
        finally:
            hook.remove()
        return output, seen[0]

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain.unet(x, self.timesteps, self.context)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value."""
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"differs by {error:.2e}"


def check_equal_branches_are_computed_once(parts: Parts) -> None:
    x = parts.row.repeat(2, 1, 1, 1)
    output, rows = parts.computed_rows(x, transformer_options=GUIDED)
    assert rows == 1
    close(output, parts.expected(x))


def check_unequal_branches_are_computed_apart(parts: Parts) -> None:
    x = torch.cat([parts.row, parts.row + 0.1])
    output, rows = parts.computed_rows(x, transformer_options=GUIDED)
    assert rows == 2
    close(output, parts.expected(x))


def check_a_control_net_reaches_every_row(parts: Parts) -> None:
    x = parts.row.repeat(2, 1, 1, 1)
    residual = torch.randn(2, TINY.unet.model_channels, SIDE, SIDE)
    control = {"input": [residual], "middle": [], "output": []}
    output, rows = parts.computed_rows(x, transformer_options=GUIDED, control=control)
    assert rows == 2
    expected = parts.plain.unet(x, parts.timesteps, parts.context, control)
    close(output, expected)
    assert not torch.allclose(output, parts.expected(x))


def check_attention_is_the_host_s_and_can_be_overridden(parts: Parts) -> None:
    calls = []

    def override(attend, *args, **kwargs):
        calls.append(attend.__name__)
        return attend(*args, **kwargs)

    x = parts.row.repeat(2, 1, 1, 1)
    options = {**GUIDED, "optimized_attention_override": override}
    output, _ = parts.computed_rows(x, transformer_options=options)
    assert calls and parts.unet.host_attention.options == {}
    close(output, parts.expected(x))


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
        [[positive, {}]],
        [[negative, {}]],
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
    described = ours("nodes.adapter.denoiser")._host_entries(unet_config)
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
    conditions = [[[context, dict(photo)]] for context in parts.context.split(1)]
    noise = torch.randn(1, 4, SIDE, SIDE)
    results = [
        comfy.sample.sample(
            each, noise, 2, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )
        for each in (compiled, model)
    ]  # fmt: skip
    close(*results)


def run(make_parts: Callable[[], Any], module: dict[str, Any]) -> None:
    """Run every check of a module on the same parts, and print what came of them."""
    results = {}
    with torch.inference_mode():
        parts = make_parts()
        for name, check in list(module.items()):
            if name.startswith("check_"):
                try:
                    check(parts)
                    results[name] = None
                except Exception:  # reported by the test of that name
                    results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    run(Parts, globals())
