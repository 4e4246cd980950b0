"""Denoiser and first stage of the published size, with random weights, in all ways to run them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.gpu.clock import captured
from benchmarks.gpu.networks import HALF, randomise, relative_error, sizes, unet_arguments
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report, free
from pbe_model.networks.attention import reference_attention, sdpa_attention
from pbe_model.networks.unet import UNet
from pbe_model.networks.vae import AutoencoderKL

ALL_TOKENS = 257  # of CLIP ViT-L/14
UNET_LIMITS = {"fp16": 1e-2, "bf16": 5e-2}
VAE_LIMITS = {"fp16": 2e-2, "bf16": 1e-1}


@torch.no_grad()
def run(report: Report, options: Options) -> None:
    """All checks but that of the compiler, which takes long."""
    report.attempt("denoiser", lambda: _denoiser(report, options))
    free()
    report.attempt("first stage", lambda: _first_stage(report, options))


def _denoiser(report: Report, options: Options) -> None:
    config, device = sizes(options.small), options.on
    unet = _random(UNet, config.unet, device)
    x, t, context = unet_arguments(config, device)
    plain = unet(x, t, context)

    def check(name: str, job: Callable[[], Tensor], limit: float, needs: float = 0.0) -> None:
        def compared() -> None:
            report.check(name, relative_error(job(), plain), limit)

        report.attempt(name, compared, needs)

    def with_tf32() -> Tensor:
        torch.backends.cudnn.allow_tf32 = True
        try:
            return unet(x, t, context)
        finally:
            torch.backends.cudnn.allow_tf32 = False

    for name, dtype in HALF.items():
        half = copy.deepcopy(unet).to(dtype)
        arguments = unet_arguments(config, device, dtype)
        title = f"denoiser in {name} against float32"
        check(title, lambda half=half, a=arguments: half(*a), UNET_LIMITS[name])
        half.to(memory_format=torch.channels_last)
        title += ", channels-last"
        check(title, lambda half=half, a=arguments: half(*a), UNET_LIMITS[name])
        if name == "fp16":
            _graph(report, options, half, arguments)
        del half
    if options.cuda:
        check("denoiser, TF32 convolutions against float32", with_tf32, 5e-3)
    else:
        report.skip("denoiser, TF32 convolutions against float32", "needs CUDA")
    check("denoiser, two forward passes against the shared prefix",
          lambda: torch.cat([unet(x, t, one) for one in context.chunk(2)]), 1e-5)  # fmt: skip
    # Attention over two equal tokens is written out, and gives what it gives over one of them.
    check("denoiser, attention's formula against the shortcut of one token",
          lambda: unet(x, t, context.repeat(1, 2, 1)), 1e-5)  # fmt: skip
    report.attempt("all tokens", lambda: _all_tokens(report, options, unet))
    report.attempt("against the CPU", lambda: _against_the_cpu(report, options, unet), needs=4)


def run_compiled(report: Report, options: Options) -> None:
    """The whole denoiser compiled; on a CPU only traced, which takes seconds and not minutes."""
    config, device = sizes(options.small), options.on
    name = "denoiser compiled as a whole against eager, fp16"

    @torch.no_grad()
    def compared() -> None:
        unet = _random(UNet, config.unet, device).half().to(memory_format=torch.channels_last)
        arguments = unet_arguments(config, device, torch.float16)
        eager = unet(*arguments)
        backend = "inductor" if options.cuda else "eager"
        compiled = torch.compile(unet, backend=backend, fullgraph=True)
        report.check(name, relative_error(compiled(*arguments), eager), 1e-2, detail=backend)

    report.attempt(name, compared, needs=60 if options.cuda else 0)


def _random(kind: Callable[..., nn.Module], config: object, device: torch.device) -> nn.Module:
    with torch.device(device):
        module = kind(config)
    randomise(module)
    return module.eval().requires_grad_(False)


def _graph(
    report: Report, options: Options, unet: nn.Module, arguments: tuple[Tensor, ...]
) -> None:
    name = "denoiser as a CUDA graph against eager, fp16"

    def compared() -> None:
        x, t, context = (tensor.clone() for tensor in arguments)
        replay = captured(lambda: unet(x, t, context))
        x.copy_(x.flip(-1))  # a graph reads the same memory: other numbers, another result
        report.check(name, relative_error(replay(), unet(x, t, context)), 1e-3)

    if options.cuda:
        report.attempt(name, compared)
    else:
        report.skip(name, "needs CUDA")


def _all_tokens(report: Report, options: Options, unet: nn.Module) -> None:
    assert isinstance(unet, UNet)
    arguments = unet_arguments(sizes(options.small), options.on, tokens=ALL_TOKENS)
    found = unet(*arguments)
    unet.set_attention(reference_attention)
    expected = unet(*arguments)
    unet.set_attention(sdpa_attention)
    error = relative_error(found, expected)
    report.check(f"denoiser, {ALL_TOKENS} tokens, SDPA against attention written out", error, 1e-4)


def _against_the_cpu(report: Report, options: Options, unet: nn.Module) -> None:
    """A small latent, because the CPU is slow."""
    config = sizes(options.small)
    found = unet(*unet_arguments(config, options.on, side=16))
    expected = copy.deepcopy(unet).cpu()(*unet_arguments(config, torch.device("cpu"), side=16))
    error = relative_error(found, expected)
    report.check("denoiser in float32 against the CPU, latent of 16", error, 1e-4)


def _first_stage(report: Report, options: Options) -> None:
    config, device = sizes(options.small), options.on
    vae = _random(AutoencoderKL, config.vae, device)
    assert isinstance(vae, AutoencoderKL)
    generator = torch.Generator().manual_seed(2)
    side = config.resolution
    image = (torch.rand(1, 3, side, side, generator=generator) * 2 - 1).to(device)
    latent = vae.encode(image).mean
    decoded = vae.decode(latent)
    for name, dtype in HALF.items():
        half = copy.deepcopy(vae).to(dtype)
        errors = {
            "encodes": relative_error(half.encode(image.to(dtype)).mean, latent),
            "decodes": relative_error(half.decode(latent.to(dtype)), decoded),
        }
        for verb, error in errors.items():
            # A number that is not finite makes the error NaN, which never passes.
            title = f"first stage {verb} in {name}, finite, against float32"
            report.check(title, error, VAE_LIMITS[name])
