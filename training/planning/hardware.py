"""Peak matrix rates and memory of accelerators, from their makers' data sheets.

Rates are those of a card's largest form (SXM where there is one), dense, with sums in float32.
Sources: NVIDIA's data sheets of V100, T4, A100, L40S, H100, H200 and HGX B200; its architecture
papers GA102, Ada and RTX Blackwell for the GeForce cards; AMD's of the MI300X.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind of card.

    Attributes:
        half: TFLOP/s in fp16, and in bf16 if `has_bf16`.
        single: TFLOP/s in float32, without TF32.
        memory: GiB.
        has_bf16: Whether its matrix units support bf16.
    """

    half: float
    single: float
    memory: int
    has_bf16: bool = True

    def flops(self, precision: str) -> float | None:
        """Peak FLOP/s in the precision of a run; `None` if its matrix units lack that."""
        if precision == "bf16" and not self.has_bf16:
            return None
        return 1e12 * (self.single if precision == "no" else self.half)


KINDS = {
    "t4": Accelerator(half=65, single=8.1, memory=16, has_bf16=False),
    "v100": Accelerator(half=125, single=15.7, memory=32, has_bf16=False),
    "rtx3090": Accelerator(half=71, single=35.6, memory=24),
    "rtx4090": Accelerator(half=165.2, single=82.6, memory=24),
    "rtx5090": Accelerator(half=209.5, single=104.8, memory=32),
    "l40s": Accelerator(half=362, single=91.6, memory=48),
    "a100-40": Accelerator(half=312, single=19.5, memory=40),
    "a100": Accelerator(half=312, single=19.5, memory=80),
    "h100": Accelerator(half=989, single=67, memory=80),
    "h200": Accelerator(half=989, single=67, memory=141),
    "b200": Accelerator(half=2250, single=75, memory=180),
    "mi300x": Accelerator(half=1307, single=163.4, memory=192),
}

# Slower forms of a card under the same name, and slices of one.
_OTHER_FORMS = re.compile(r"\b(laptop|max-q|mobile|pcie|nvl|mig|d)\b")


def kind_of(name: str) -> str | None:
    """The kind of card that a driver's name such as `NVIDIA H100 80GB HBM3` stands for.

    `None` for kinds that are not in the table, and for slower forms of those that are.
    """
    words = name.lower()
    # V100, T4 and A100 run at the same matrix rates in all their forms.
    same = re.search(r"\b(v100|t4|a100)\b", words)
    if _OTHER_FORMS.search(words) and not (same and "mig" not in words):
        return None
    letters = re.sub(r"[^a-z0-9]+", " ", words).replace("rtx ", "rtx")
    return next((kind for kind in KINDS if kind in letters.split()), None)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a GPU, by which a run's MFU is measured.

    Args:
        device: The training's.
        precision: `"no"`, `"bf16"` or `"fp16"`.

    Returns:
        `None` for CPUs, for GPUs that the table lacks, and for precisions that a GPU has no matrix
        units for.
    """
    if device.type != "cuda":
        return None
    kind = kind_of(torch.cuda.get_device_name(device))
    return KINDS[kind].flops(precision) if kind else None
