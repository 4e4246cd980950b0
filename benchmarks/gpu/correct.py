"""Whether what runs on the card computes what it should, the most telling checks first."""

from __future__ import annotations

import os

import torch

from benchmarks.gpu import attention_checks, edit_checks, network_checks, training_checks
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report


def prepare(options: Options) -> None:
    """Paint on the CPU what the card is compared with."""
    edit_checks.prepare(options)


def run(report: Report, options: Options) -> None:
    """Hold the card to the CPU, 16 bits to 32, and every fast way to the plain one."""
    # cuBLAS reads it when CUDA starts; without it its products may differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Else convolutions of float32 round to 10 bits, which hides errors; where it is on, it says so.
    torch.backends.cudnn.allow_tf32 = False
    edit_checks.run(report, options)
    network_checks.run(report, options)
    attention_checks.run(report, options)
    training_checks.run(report, options)
    network_checks.run_compiled(report, options)
