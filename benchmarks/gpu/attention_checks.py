"""Every attention kernel that torch and xformers have, against attention written out in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.networks import relative_error
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report
from pbe_model.networks.attention import (
    Attention,
    reference_attention,
    sdpa_attention,
    xformers_attention,
    xformers_works,
)

HEADS = 8
SHAPES = ((4096, 40), (1024, 80), (256, 160), (64, 160))
"""Tokens and width of a head, at each level of the published denoiser at 512 pixels."""
LIMITS = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def run(report: Report, options: Options) -> None:
    """One row for each kernel and type, with the worst of the shapes."""
    shapes = ((64, 40), (16, 80)) if options.small else SHAPES
    for dtype, limit in LIMITS.items():
        cases: list[tuple[list[Tensor], Tensor]] = []
        if not report.attempt(
            f"reference attention, {dtype}",
            lambda dtype=dtype, cases=cases: cases.extend(
                _case(tokens, width, dtype, options.on) for tokens, width in shapes
            ),
        ):
            continue
        for kernel, attention in _kernels(options, dtype).items():
            name = f"attention, {kernel}, {str(dtype).removeprefix('torch.')}"
            if attention is None:
                report.skip(name, "needs CUDA")
                continue
            report.attempt(
                name,
                lambda name=name, attention=attention, cases=cases, limit=limit: _compare(
                    report, name, attention, cases, limit
                ),
            )


def _case(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Query, key and value, and what comes of exactly these numbers in float64."""
    generator = torch.Generator(device).manual_seed(tokens)
    shape = (1, tokens, HEADS * width)
    qkv = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3)]
    q, k, v = (x.double() for x in qkv)
    return qkv, reference_attention(q, k, v, HEADS)


def _kernels(options: Options, dtype: torch.dtype) -> dict[str, Attention | None]:
    """Attention by the name of its kernel; `None` for those that only a card has."""

    def only(kernel: SDPBackend) -> Attention:
        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            with sdpa_kernel(kernel):
                return sdpa_attention(q, k, v, heads)

        return attention

    kernels: dict[str, Attention | None] = {
        "torch's choice": sdpa_attention,
        "written out": reference_attention,
    }
    for name, kernel in KERNELS.items():
        on_cpu = kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
        kernels[name] = only(kernel) if options.cuda or on_cpu else None
    works = options.cuda and xformers_works("cuda", dtype)
    if works or not options.cuda:
        kernels["xformers"] = xformers_attention if works else None
    return kernels


def _compare(
    report: Report,
    name: str,
    attention: Attention,
    cases: list[tuple[list[Tensor], Tensor]],
    limit: float,
) -> None:
    errors, notes = [], []
    for (q, k, v), expected in cases:
        tokens, width = q.shape[1], q.shape[2] // HEADS
        try:
            found = attention(q, k, v, HEADS)
        except RuntimeError as error:  # torch says in many ways that it has no such kernel
            if attention in (sdpa_attention, reference_attention):
                raise
            notes.append(f"heads of {width}: {str(error).splitlines()[0]}")
            continue
        errors.append(relative_error(found, expected))
        notes.append(f"{tokens} x {width}: {errors[-1]:.1e}")
    if errors:
        report.check(name, max(errors), limit, detail=", ".join(notes))
    else:
        report.skip(name, f"no kernel for any of the shapes: {notes[0]}")
