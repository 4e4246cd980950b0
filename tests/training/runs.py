"""What tests of training share: a small model, a folder of photos, and runs as own processes.

As a script it is the real `pbe-train`, with the small model under the name `tiny`:
`python runs.py train run.toml`. `KILL_AT=n` in the environment kills the process with signal 9
right after update `n`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from pbe_model.config import CONFIGS, ExemplarConfig, PBEConfig, UNetConfig, VAEConfig
from training import state
from training.config import RunConfig

SMALL = PBEConfig(
    unet=UNetConfig(
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(2,),
        context_dim=16,
        norm_groups=8,
    ),
    vae=VAEConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, scale_factor=0.5),
    exemplar=ExemplarConfig(
        image_size=16, patch_size=8, hidden_size=64, num_layers=1, num_heads=1, mapper_layers=1
    ),
    resolution=16,
)


def write_photos(root: Path, count: int = 10) -> Path:
    """Photos of noise with a plain box, the same for training and validation."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            photo = rng.integers(0, 256, (24, 24, 3), np.uint8)
            photo[6:18, 6:18] = rng.integers(0, 256, 3)
            name = f"{split}/{number}.png"
            assert cv2.imwrite(str(root / name), photo)
            lines.append(json.dumps({"image": name, "box": [6, 6, 18, 18], "id": str(number)}))
        (root / split / "boxes.jsonl").write_text("\n".join(lines))
    return root


def write_pairs(root: Path, count: int = 12) -> Path:
    """Held-out pairs, each of a group of its own: a striped square before two other noises."""
    rng = np.random.default_rng(1)
    (root / "val").mkdir(parents=True)
    lines = []
    for number in range(count):
        stripes = np.broadcast_to(rng.integers(0, 256, (2, 1, 3)), (2, 12, 3))
        thing = np.tile(stripes, (6, 1, 1))
        photo, exemplar = rng.integers(80, 170, (30, 40, 3)), rng.integers(80, 170, (14, 14, 3))
        photo[8:20, 14:26] = exemplar[1:13, 1:13] = thing
        entry = {"box": [14, 8, 26, 20], "id": str(number), "group": f"group-{number}"}
        for name, picture in (("photo", photo), ("exemplar", exemplar)):
            entry[name] = f"val/{name}-{number}.png"
            assert cv2.imwrite(str(root / entry[name]), picture.astype(np.uint8))
        lines.append(json.dumps(entry))
    (root / "val/pairs.jsonl").write_text("\n".join(lines))
    return root


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter, those included that start at 0, so that each one matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)
            else:
                parameter.mul_(0.2).add_(name.endswith("weight"))


def run_config(photos: Path, out: Path, init: Path | None = None, **options) -> RunConfig:
    """A run of a few small updates; entries of data and optim by their own names."""
    data = {"root": photos, "workers": 0}
    optim = {"lr": 1e-3, "warmup_steps": 2}
    for group in (data, optim):
        known = RunConfig.model_fields["data" if group is data else "optim"].annotation.model_fields
        group.update({name: options.pop(name) for name in list(options) if name in known})
    settings = {
        "stage": "first_stage" if init is None else "diffusion",
        "model": "tiny",
        "out": out,
        "init": init,
        "threads": 1,
        "batch_size": 4,
        "steps": 4,
        "log_every": 1,
        "sample_every": 1000,
    }
    return RunConfig.model_validate({**settings, **options, "data": data, "optim": optim})


def to_toml(config: RunConfig) -> str:
    """The configuration as a user's file."""
    values = config.model_dump(mode="json", exclude_none=True)
    tables = {name: values.pop(name) for name in ("data", "optim")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines)


def start(
    config: RunConfig, *, kill_at: int | None = None, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """`pbe-train train` in a process of its own, or in several under torchrun."""
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--standalone", "--local_addr", "127.0.0.1"]  # on a free port
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    if kill_at:
        environment["KILL_AT"] = str(kill_at)
    return subprocess.run(
        [*launcher, __file__, "train", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def logged(out: Path) -> list[dict[str, float]]:
    """Figures of a run's updates, without the rate, which is a matter of time."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "images_per_second"} for e in lines if "loss" in e]


def newest(out: Path) -> dict:
    """The last checkpoint of a run."""
    saved = state.load_newest(out / "checkpoints")
    assert saved is not None
    return saved


def digest(out: Path) -> str:
    """Hash of all that a run's last checkpoint holds."""
    found = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for name in value:
                found.update(str(name).encode())
                add(value[name])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        else:
            found.update(repr(value).encode())

    add(newest(out))
    return found.hexdigest()


def _main() -> int:
    from training import loop
    from training.cli import main
    from training.runlog import RunLog

    torch.set_num_threads(1)
    CONFIGS["tiny"] = SMALL
    kill_at = int(os.environ.get("KILL_AT", 0))
    if kill_at:
        advance, updates = RunLog.advance, iter(range(1, kill_at + 1))

        def advance_or_die(log: RunLog) -> None:
            advance(log)
            if next(updates) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        RunLog.advance = advance_or_die

    class Announced(loop.Accelerator):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            print(f"process {self.process_index} of {self.num_processes}", flush=True)

    loop.Accelerator = Announced
    return main()


if __name__ == "__main__":
    sys.exit(_main())
