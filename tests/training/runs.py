"""What tests of training share: a small model, a folder of photos, and runs as own processes.

As a program it is the real `pbe-train`, with the small model under the name `tiny`:
`python -m tests.training.runs train run.toml`; see `_main` for what the environment may ask of it.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from pbe_model.config import CONFIGS, ExemplarConfig, PBEConfig, UNetConfig, VAEConfig
from training import checkpoints as state
from training.config import RunConfig, to_toml

from .. import forked

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
    """A run of a few small updates; options by dotted name, such as `{"optim.lr": 1e-3}`."""
    settings: dict = {
        "stage": "first_stage" if init is None else "diffusion",
        "model": "tiny",
        "out": out,
        "init": init,
        "train_tower": init is not None and init.stem == "first_stage",  # which has none
        "threads": 1,
        "batch_size": 4,
        "steps": 4,
        "data": {"root": photos, "workers": 0},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "log": {"every": 1, "sample_every": 1000},
    }
    for name, value in options.items():
        group, dot, entry = name.rpartition(".")
        (settings.setdefault(group, {}) if dot else settings)[entry] = value
    return RunConfig.model_validate(settings)


def changed(config: RunConfig, **options) -> RunConfig:
    """The same run with other top-level entries."""
    return config.model_copy(update=options)


def start(
    config: RunConfig, *, processes: int = 1, nodes: int = 1, restarts: int = 0, **extra: object
) -> subprocess.CompletedProcess[str]:
    """`pbe-train train` in a process of its own, or in several under torchrun.

    Args:
        config: Of the run.
        processes: On each node.
        nodes: Agents of torchrun, all on this machine; the first one's result is returned.
        restarts: How often torchrun starts all processes again when one dies.
        extra: What is to happen on the way, see `_main`.
    """
    file = config.out.with_suffix(".toml")
    file.write_text(to_toml(config))
    command = ["train", str(file)]
    environment = {
        **{name: str(value) for name, value in extra.items()},
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if processes * nodes == 1:
        return forked.run(_command, command, environment=environment)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    torchrun += ["--nproc_per_node", str(processes), "--nnodes", str(nodes)]
    torchrun += ["--max_restarts", str(restarts), "--local_addr", "127.0.0.1"]
    torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}"]
    agents = [
        subprocess.Popen(
            [*torchrun, "-m", __name__, *command],
            env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group that tests may signal
            preexec_fn=forked.heed_signals,
        )
        for _ in range(nodes)
    ]
    outputs = [agent.communicate(timeout=600) for agent in agents]
    return subprocess.CompletedProcess(command, agents[0].returncode, *outputs[0])


TIMES = ("images_per_second", "peak_memory_gb", "mfu")


def logged(out: Path) -> list[dict[str, float]]:
    """Figures of a run's updates, without those that are a matter of the machine."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in TIMES} for e in lines if "loss" in e]


def newest(out: Path) -> dict:
    """The last checkpoint of a run."""
    saved = state.load_newest(out / "checkpoints")
    assert saved is not None
    return saved


def digest(out: Path) -> str:
    """Hash of weights, optimizer and averages in a run's last checkpoint."""
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

    saved = newest(out)
    add([saved[name] for name in ("step", "samples", "module", "optimizer", "ema")])
    return found.hexdigest()


def _command(arguments: list[str]) -> int:
    sys.argv[1:] = arguments
    return _main()


def _main() -> int:
    """The command, with the small model; the environment says what happens on the way.

    `AT=n`: after update n, in this process or under torchrun in that of rank `WHOM`; with
    `ONCE=file` only if that file is not there yet:

    * `SIGNAL=number` is sent, to this process or to what `TO` says: its `group`, its `parent`, or
      the first `worker` that makes samples for it.
    * `REMOVE=pattern` of files, which go.
    * `FILL=file` takes all room that is left on its disk, and gives it back two updates later.

    `LARGEST=bytes`: no file may grow beyond, as on a disk that is full.
    """
    from training import loop
    from training.cli import main
    from training.runlog import RunLog

    torch.set_num_threads(1)
    CONFIGS["tiny"] = SMALL
    ask = os.environ.get
    at, once = int(ask("AT", 0)), ask("ONCE")
    if largest := int(ask("LARGEST", 0)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    advance = RunLog.advance
    updates = itertools.count(1)

    def advance_and_more(log: RunLog) -> None:
        advance(log)
        number = next(updates)
        if ask("FILL") and number == at + 2:
            Path(os.environ["FILL"]).unlink()
        if number != at or ask("RANK", "0") != ask("WHOM", "0"):
            return
        if once and Path(once).exists():
            return
        if once:
            Path(once).touch()
        if fill := ask("FILL"):
            _fill(Path(fill))
        if pattern := ask("REMOVE"):
            for name in glob.glob(pattern):
                os.unlink(name)
        if ask("SIGNAL"):
            _send(int(os.environ["SIGNAL"]), ask("TO"))

    RunLog.advance = advance_and_more

    class Announced(loop.Accelerator):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            print(f"process {self.process_index} of {self.num_processes}", flush=True)

    loop.Accelerator = Announced
    return main()


def _send(number: int, to: str | None) -> None:
    if to == "group":
        os.killpg(0, number)
    elif to == "parent":
        os.kill(os.getppid(), number)
    elif to == "worker":
        os.kill(min(child.pid or 0 for child in multiprocessing.active_children()), number)
    else:
        os.kill(os.getpid(), number)


def _fill(path: Path) -> None:
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


if __name__ == "__main__":
    sys.exit(_main())
