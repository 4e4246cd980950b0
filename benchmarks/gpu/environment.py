"""What the machine is: card, driver, libraries, and whether xformers works on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

import torch

from benchmarks.gpu.clock import matmul_rate, milliseconds
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report
from pbe_model.networks.attention import xformers_works

PACKAGES = (
    "torch", "torchvision", "triton", "xformers", "transformers", "diffusers", "accelerate",
    "safetensors", "einops", "numpy", "pydantic",
)  # fmt: skip


def run(report: Report, options: Options) -> None:
    """Write down the machine, and measure the two rates that limit everything else."""
    report.attempt("card", lambda: _card(report, options))
    report.attempt("libraries", lambda: _libraries(report))
    report.attempt("xformers", lambda: _xformers(report, options))
    report.attempt("rates", lambda: _rates(report, options))


def _card(report: Report, options: Options) -> None:
    if not options.cuda:
        report.skip("card", "needs CUDA")
        return
    torch.zeros(1, device="cuda")  # the first use starts CUDA, and fails where it does not work
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    report.value("card", card.name)
    report.value("compute capability", f"{card.major}.{card.minor}")
    report.value("multiprocessors", card.multi_processor_count)
    report.value("memory", total / 2**30, "GiB", f"{free / 2**30:.1f} GiB free")
    report.value("CUDA of torch", str(torch.version.cuda))
    report.value("cuDNN", str(torch.backends.cudnn.version()))
    if shutil.which("nvidia-smi"):
        asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        found = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        report.value("driver, clocks, power, temperature", found.stdout.strip(), detail=asked)


def _libraries(report: Report) -> None:
    report.value("Python", platform.python_version())
    report.value("processor cores", os.cpu_count() or 0)
    for name in PACKAGES:
        try:
            report.value(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            report.skip(name, "not installed")


def _xformers(report: Report, options: Options) -> None:
    if not options.cuda:
        report.skip("xformers dispatches", "needs CUDA")
        return
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        works = "yes" if xformers_works("cuda", dtype) else "no"
        report.value(f"xformers dispatches, {str(dtype).removeprefix('torch.')}", works)


def _rates(report: Report, options: Options) -> None:
    device, side = options.on, 256 if options.small else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        rate = matmul_rate(device, dtype, side)
        report.value(f"matrix product of {side}, {name}", rate / 1e12, "TFLOP/s")
    source = torch.randn(2**20 if options.small else 2**29, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(milliseconds(lambda: target.copy_(source), device) for _ in range(5))
    report.value("copy within memory, read and written", 2 * source.nbytes / best / 1e9, "TB/s")
