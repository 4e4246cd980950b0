"""Train the bundled model's configuration for the time that is there, and bring it home.

`--train CONFIG --data FILE [--init MODEL]`: the data set is one tar, as `pbe-train prepare demo
--pack` writes it. What comes back is in pieces below 16 MB, put together by `cat`: the averaged
weights `model.safetensors.0`, `.1` ... (of a run that averages none, the last ones), and the last
ones, `raw.safetensors.0` ..., to go on from.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report
from pbe_model import PaintByExample
from pbe_model.atomic import replacing
from training.config import load_config
from training.evaluation.evaluate import evaluate_pairs
from training.evaluation.pairs import load_pairs
from training.export import export

PIECE = 15_990_000
"""Bytes."""
SIMILARITIES = (1.0, 2.0, 3.0, 4.0)

_PUBLISH_EVERY = 60.0  # seconds between the weights that are brought home
_ENDING = {"first_stage": 15.0, "exemplar": 15.0, "diffusion": 20.0}
"""Seconds that are kept for saving, exporting and measuring."""
_SAVING = 30.0  # seconds that a run may take to save and stop
_PATIENCE = 60.0  # seconds until a run's first figures
_WAYS = (("--cuda-graphs",), ())
"""Words for the trainer, the fastest first; the next ones where those do not begin. Compiling takes
longer than it wins back in a few minutes."""
_PROBED = 8  # lines of the log after which the speed is known
_RESTART = 15.0  # seconds from stopping a run to its next update
_SHARE = 0.985  # of the updates that the speed would allow: the learning rate is to reach its end


def run(report: Report, options: Options) -> None:
    """Train until the time is nearly over, export, and measure what was trained."""
    if options.train is None or options.data is None:
        report.skip("training", "needs --train CONFIG and --data FILE")
        return
    stage = load_config(options.train).stage
    with tempfile.TemporaryDirectory() as folder:
        data, run_folder = Path(folder) / "data", Path(folder) / "run"
        with tarfile.open(options.data) as archive:
            archive.extractall(data, filter="data")
        _train(report, options, data, run_folder)
        exported = publish(run_folder, options.out)
        for line in _figures(run_folder):
            report.value(line.pop("name"), **line)
        sheet = max(run_folder.rglob("*.png"), default=None, key=lambda p: p.stat().st_mtime)
        if sheet is not None:
            (options.out / "samples.png").write_bytes(sheet.read_bytes())
        if exported is not None and stage == "diffusion":
            _measure(report, options, data, exported)


def _train(report: Report, options: Options, data: Path, run_folder: Path) -> None:
    """Train until the time is nearly over, in the fastest way that begins."""
    end = time.monotonic() + report.left - _ENDING[load_config(str(options.train)).stage]
    command = [
        sys.executable, "-m", "training", "train", str(options.train),
        "--data.root", str(data), "--out", str(run_folder),
        "--data.workers", str(max(1, (os.cpu_count() or 1) - 4)),
        "--checkpoint.keep", "1", *(["--init", str(options.init)] if options.init else []),
        *(["--optim.options", "fused", "True"] if options.cuda else []),
        *options.more,
    ]  # fmt: skip
    for words in _WAYS if options.cuda else ((),):
        process = subprocess.Popen([*command, *words])
        if not _watch(report, options, process, run_folder, end, lines=_PROBED):
            report.add("training", "error", detail=f"did not begin with {' '.join(words)!r}")
            continue
        report.value("trained", " ".join(words) or "plainly")
        if steps := _affordable(run_folder, end - time.monotonic() - _RESTART):
            report.value("updates planned", steps)
            process = subprocess.Popen([*command, *words, "--steps", str(steps)])
            if not _watch(report, options, process, run_folder, end):
                report.add("training", "error", detail=f"ended with code {process.returncode}")
        return


def _affordable(run_folder: Path, seconds: float) -> int | None:
    """Updates in all that a stopped run can reach in more seconds; `None` if it can make none."""
    lines = _log(run_folder)[2:]  # the first ones are slow
    speeds = sorted(line["images_per_second"] for line in lines if "images_per_second" in line)
    if not speeds or seconds <= 0:
        return None
    batch = json.loads((run_folder / "config.json").read_text(encoding="utf-8"))["batch_size"]
    made = max(line["step"] for line in lines)
    return made + max(1, int(_SHARE * seconds * speeds[len(speeds) // 2] / batch))


def _watch(
    report: Report,
    options: Options,
    process: subprocess.Popen[bytes],
    run_folder: Path,
    end: float,
    lines: float = math.inf,
) -> bool:
    """See a run to its end or to so many lines in its log, and the weights home.

    Returns:
        Whether it has begun to train, and ended as it should.
    """
    began = published = time.monotonic()
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.25)
            now, written = time.monotonic(), len(_log(run_folder))
            if written >= lines:
                break
            if now - began > _PATIENCE and not written:
                return False
            if now - published > _PUBLISH_EVERY:
                report.attempt("publish", lambda: publish(run_folder, options.out))
                published = now
        process.send_signal(signal.SIGTERM)
        process.wait(_SAVING)
    finally:
        process.kill()
    return process.returncode in (0, 128 + signal.SIGTERM)


def publish(run_folder: Path, out: Path) -> Path | None:
    """Export the newest checkpoint, if there is one, into pieces.

    Returns:
        The whole file of the averaged weights, or of the last ones where the run averages none.
    """
    if not list((run_folder / "checkpoints").glob("step-*.pt")):
        return None
    for weights, name in ((None, "model.safetensors"), ("raw", "raw.safetensors")):
        path = run_folder / name
        export(run_folder, path, dtype=torch.float16, weights=weights)
        content = path.read_bytes()
        for number in range(-(-len(content) // PIECE)):
            with replacing(out / f"{name}.{number}") as part:
                part.write_bytes(content[number * PIECE : (number + 1) * PIECE])
    return run_folder / "model.safetensors"


def _log(run_folder: Path) -> list[dict]:
    """The lines of the run's log so far."""
    path = run_folder / "log.jsonl"
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # the last may be half written
    return [json.loads(line) for line in whole.splitlines()]


def _figures(run_folder: Path) -> list[dict]:
    """What the run's log says: its last figures, and its speed along the way."""
    lines = _log(run_folder)
    last: dict[str, float] = {}
    for line in lines:
        last |= line
    found = [{"name": name, "value": value} for name, value in last.items()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    curve = [f"{line['step']}: {line['loss']:.4f}" for line in lines if "loss" in line]
    if speeds:
        found.append({"name": "median images a second", "value": sorted(speeds)[len(speeds) // 2]})
        found.append(
            {"name": "loss by step", "value": ", ".join(curve[:: max(1, len(curve) // 40)])}
        )
    return found


def _measure(report: Report, options: Options, data: Path, exported: Path) -> None:
    """Retrieval, sharpness and seam of what was trained, while there is time."""

    def job(split: str, similarity: float) -> None:
        found = load_pairs(data, 32 if options.small else 256, split=split)
        model = PaintByExample.from_checkpoint(exported, device=options.device)
        steps = 2 if options.small else 20
        figures = evaluate_pairs(model, found, similarity=similarity, steps=steps, batch=64)
        text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        report.value(f"{split}, similarity {similarity:g}", text)

    for similarity in SIMILARITIES:
        for split in ("val", "seen"):
            report.attempt(
                f"{split}, similarity {similarity:g}", partial(job, split, similarity), needs=5
            )
