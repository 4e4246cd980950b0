"""Time and memory of a training step at the published size, here and in diffusers.

A step is the forward and backward pass for one picture: the noise loss of the denoiser (860 M
parameters, random) on one noisy latent and one token. Both train what they can: diffusers' network
every weight, ours all but those that one token leaves inert. Optimizers are left out; Adam's two
states cost both the same 8 bytes a trained weight. As in the loop of training, ours keeps gradients
of 16 bits under autocast (`training.optim.gradients`).

    python -m benchmarks.training_step [--precision bf16 pure-bf16 fp32] [--side 32] [--steps 1]

Every case is a process of its own, ours and diffusers' in turn. Its first step, on a latent of
8 x 8, warms up and does not count. `bf16` is what trainers do: float32 weights under autocast;
`pure-bf16` has weights of bfloat16. Peak memory is that of the process (VmHWM), and that less what
it held once the libraries were imported. Processor time is shown beside the clock's, for machines
that do other work too. A processor without bfloat16 instructions takes minutes for a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbe_model.config import V1
from pbe_model.networks.unet import UNet
from training.optim.gradients import Bf16GradOptimizer

PRECISIONS = ("bf16", "pure-bf16", "fp32")
WHO = ("diffusers", "ours")
MEASURES = {
    "seconds": "s",
    "processor_seconds": "processor s",
    "peak_gib": "peak GiB",
    "peak_above_imports_gib": "above imports",
}
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Run every case in turn and print the table, or one case for the parent process."""
    parser = argparse.ArgumentParser(description="A training step's time and memory.")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bf16"])
    parser.add_argument(
        "--checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"],
        help="gradient checkpointing [off on]",
    )  # fmt: skip
    parser.add_argument(
        "--side", type=int, default=32, help="of the latent, 8 pixels [%(default)s]"
    )
    parser.add_argument("--steps", type=int, default=1, help="a process [%(default)s]")
    parser.add_argument("--rounds", type=int, default=1, help="processes a case [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="[%(default)s]")
    parser.add_argument("--case", choices=WHO, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measured(args)))
        return

    print(f"{'latent ' + str(args.side):24}" + "".join(f"{m:>16}" for m in MEASURES.values()))
    for precision in args.precision:
        for checkpointing in args.checkpointing:
            runs: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
            for _ in range(args.rounds):
                for who in WHO:
                    runs[who].append(in_a_process(who, precision, checkpointing, args))
            figures = {
                who: {m: statistics.median(run[m] for run in runs[who]) for m in MEASURES}
                for who in WHO
            }
            print(f"{precision}, checkpointing {checkpointing}")
            for who in WHO:
                print(f"  {who:22}" + "".join(f"{figures[who][m]:16.2f}" for m in MEASURES))
            ratios = (figures["ours"][m] / figures["diffusers"][m] for m in MEASURES)
            print(f"  {'ratio':22}" + "".join(f"{ratio:16.3f}" for ratio in ratios), flush=True)


def in_a_process(
    who: str, precision: str, checkpointing: str, args: argparse.Namespace
) -> dict[str, float]:
    """`measured` of one case."""
    options = {"case": who, "precision": precision, "checkpointing": checkpointing}
    options |= {name: getattr(args, name) for name in ("side", "steps", "threads")}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.training_step", *words]
    # Threads that wait must not burn what is counted as processor time.
    env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, and the peak of the process."""
    torch.set_num_threads(args.threads)
    precision = args.precision[0]
    if args.case == "diffusers":  # here, so that ours does not hold it
        import diffusers.models.unets.unet_2d_condition  # noqa: F401
    imports = resident("VmRSS")
    module, denoiser = network(args.case)
    if precision == "pure-bf16":
        module.bfloat16()
    if args.checkpointing == ["on"]:
        module.enable_gradient_checkpointing()
    module.train()
    dtype = next(module.parameters()).dtype
    owner: Any = module
    if precision == "bf16" and args.case == "ours":
        unused = torch.optim.SGD(module.parameters())
        owner = Bf16GradOptimizer(module, unused)

    def step(side: int) -> None:
        owner.zero_grad()
        x, context = torch.randn(1, 9, side, side), torch.randn(1, 1, V1.unet.context_dim)
        amp = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with amp:
            predicted = denoiser(x.to(dtype), torch.tensor([500]), context.to(dtype))
            loss = F.mse_loss(predicted.float(), torch.randn_like(x[:, :4]))
        loss.backward()

    step(8)
    clock, processor = [], []
    for _ in range(args.steps):
        start = time.perf_counter(), time.process_time()
        step(args.side)
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    peak = resident("VmHWM")
    return {
        "seconds": statistics.median(clock),
        "processor_seconds": statistics.median(processor),
        "peak_gib": peak,
        "peak_above_imports_gib": peak - imports,
    }


def network(who: str) -> tuple[Any, Denoiser]:
    """The denoiser with random weights, and how it is called; memory holds it once."""
    with torch.device("meta"):
        if who == "ours":
            module = UNet(V1.unet)
        else:
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

            module = UNet2DConditionModel(in_channels=9, cross_attention_dim=V1.unet.context_dim)
    module.to_empty(device="cpu")
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            layer.reset_parameters()
    if isinstance(module, UNet):
        for _, parameter in module.inert_parameters():
            parameter.requires_grad_(False)
        module.to(memory_format=torch.channels_last)
        return module, module
    return module, lambda x, t, context: module(x, t, encoder_hidden_states=context).sample


def resident(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (peak) of this process in GiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**20
    raise ValueError(f"/proc/self/status has no {field}; this benchmark needs Linux")


if __name__ == "__main__":
    main()
