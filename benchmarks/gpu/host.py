"""The node pack in a real ComfyUI on the card: pictures, kinds of weights, cancelling, memory."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.comfyui import ComfyUI, HostError, Prompt
from benchmarks.gpu.host_memory import FLAGS, peaks, reserved_for_others, write_models
from benchmarks.gpu.options import Options
from benchmarks.gpu.pack_host import SERVER, SITE, unpack
from benchmarks.gpu.report import Report, free
from pbe_model import PaintByExample, edit
from pbe_model.scenes import load_scenes

SCENE, SEED, SIMILARITY = "meadow", 11, 2.0
WEIGHTS = {"fp32": 1.0, "default": 1.5, "fp16": 1.5, "bf16": 3.0, "fp8_e4m3fn": 3.0}
"""Mean difference from `edit` on the CPU, in levels of 8 bits: at most."""
FP8 = {"fp8_e4m3fn": torch.float8_e4m3fn}
"""Weights that change the picture by more; `edit` gets them rounded to these."""
LOWVRAM = ("--lowvram", "--disable-dynamic-vram", "--disable-xformers", "--fp8_e4m3fn-unet")
GROWTH = {"process": 64.0, "card": 16.0}
"""MiB that may be added over the runs."""
BESIDE = 64.0
"""MiB of the card that our MODEL may take more than the host's own SD 1.5."""

_STARTING = 240.0  # seconds; on two busy cores it takes more than one minute
_references: dict[Options, dict[str, np.ndarray]] = {}


def prepare(options: Options) -> None:
    """Paint with the package on the CPU, in float32, what the nodes are to paint."""
    if options.host is None:
        return
    (scene,) = (scene for scene in load_scenes() if scene.name == SCENE)
    model = PaintByExample.from_checkpoint()

    def painted() -> np.ndarray:
        inputs = scene.photo, scene.hole_mask, scene.exemplar
        result = edit(model, *inputs, steps=_steps(options), similarity=SIMILARITY, seed=SEED)
        return (255 * result.crops[0].numpy()).astype(int)  # the host rounds down, too

    found = _references[options] = dict.fromkeys(WEIGHTS, painted())
    for weights, dtype in FP8.items():
        for parameter in model.unet.parameters():
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
        found[weights] = painted()


def run(report: Report, options: Options) -> None:
    """One server for most, and others with little memory."""
    if options.host is None:
        report.skip("the nodes in ComfyUI", "needs --host; see gpu.md")
        return
    if options not in _references:
        prepare(options)
    with tempfile.TemporaryDirectory() as name:
        folder, server = Path(name), options.host
        if server.is_file():
            unpack(server, folder)
            server = folder / SERVER
        checks = _Checks(report, options, server, folder)
        report.attempt("ComfyUI", checks.as_it_starts)
        title = f"ComfyUI {' '.join(LOWVRAM)}"
        beside = "memory beside ComfyUI's own SD 1.5"
        if options.cuda:
            report.attempt(title, partial(checks.with_little_memory, title), needs=15)
            if options.small:
                report.skip(beside, "needs the published sizes")
            else:
                report.attempt(beside, checks.beside_the_hosts_own, needs=40)
        else:
            report.skip(f"{title}; {beside}", "needs CUDA")


class _Checks:
    def __init__(self, report: Report, options: Options, server: Path, folder: Path) -> None:
        self.report = report
        self.options = options
        self.server = server
        self.folder = folder
        self.expected = _references[options]
        self.models = folder / "models"
        self.free = 0  # bytes of the card that a server has found

    def as_it_starts(self) -> None:
        """What users do who give ComfyUI no arguments."""
        with self._running("base") as host:
            report = self.report
            report.attempt("the bundled model's workflow", lambda: self._workflow(host))
            for weights in WEIGHTS:
                report.attempt(self._title(weights), partial(self._weights, host, weights))
            report.attempt("cancelling", lambda: self._cancel(host))
            report.attempt("memory", lambda: self._memory(host))

    def with_little_memory(self, title: str) -> None:
        """Its own management of memory, and weights of 8 bits by its own argument."""
        with self._running("small", *LOWVRAM) as host:
            self._compare(title, self._paint(host), "fp8_e4m3fn")

    def beside_the_hosts_own(self) -> None:
        """Peaks of both, with the arguments for little memory and as the server starts."""
        write_models(self.models, self.options.on)
        free()
        for title, words in FLAGS.items():
            if "--lowvram" in words:
                words = (*words, *reserved_for_others(self.free))
            job = partial(self._peaks, title, *words)
            self.report.attempt(f"memory, {title}", job, needs=15)

    def _peaks(self, title: str, *words: str) -> None:
        with self._running(title.strip("-"), *words) as host:
            ours, theirs = peaks(host)
        self.report.check(f"memory, {title}, more than SD 1.5", ours - theirs, BESIDE, "MiB",
                          f"{ours:,.0f} and {theirs:,.0f} MiB at 512 pixels")  # fmt: skip

    @contextmanager
    def _running(self, name: str, *words: str) -> Iterator[ComfyUI]:
        began = time.monotonic()
        device = () if self.options.cuda else ("--cpu",)
        seconds = min(_STARTING, max(1.0, self.report.left))
        packages = self.folder / SITE
        base = self.folder / name
        if self.models.exists():
            base.mkdir()
            (base / "models").symlink_to(self.models, target_is_directory=True)
        with ComfyUI(self.server, base, packages, (*device, *words), seconds) as host:
            if not host.get("/object_info/PBELoader"):
                raise HostError(f"it did not load the nodes; its log:\n{host.log[-4000:]}")
            found = host.get("/system_stats")
            self.free = found["devices"][0]["vram_free"]
            what = f"{found['system']['comfyui_version']}, {found['devices'][0]['name']}"
            title = " ".join(["ComfyUI", *words, "starts"])
            self.report.value(title, time.monotonic() - began, "s", what)
            yield host
            print(host.log)

    def _workflow(self, host: ComfyUI) -> None:
        steps = _steps(self.options)
        began = time.monotonic()
        ran = host.run(graph(steps))
        self.report.value("the bundled model's workflow, with loading", time.monotonic() - began,
                          "s", f"{ran.steps} steps, {ran.previews} previews")  # fmt: skip
        missing = max(steps - ran.steps, steps - ran.previews)
        self.report.check("steps or previews that did not come", missing, 0)
        began = time.monotonic()
        host.run(graph(steps, seed=SEED + 1))
        self.report.value("the bundled model's workflow again", time.monotonic() - began, "s")

    def _title(self, weights: str) -> str:
        return f"weights {weights}, against the package on the CPU"

    def _weights(self, host: ComfyUI, weights: str) -> None:
        self._compare(self._title(weights), self._paint(host, weights), weights)

    def _compare(self, title: str, crop: np.ndarray, weights: str) -> None:
        apart = np.abs(crop - self.expected[weights])
        self.report.check(title, float(apart.mean()), WEIGHTS[weights], "levels",
                          f"at most {apart.max()}")  # fmt: skip

    def _paint(self, host: ComfyUI, weights: str = "default") -> np.ndarray:
        return host.picture(host.run(graph(_steps(self.options), weights)), "6").astype(int)

    def _cancel(self, host: ComfyUI) -> None:
        before = self._paint(host)
        ran = host.run(graph(200, seed=SEED + 2), cancel_at=5)
        took = math.inf if ran.cancelled is None else ran.cancelled
        self.report.check(
            "cancelling takes", took, 2.0, "s", f"asked at step 5, ended at step {ran.steps}"
        )
        host.run(graph(_steps(self.options), seed=SEED + 3))  # else the next is taken from a cache
        apart = np.abs(self._paint(host) - before)
        self.report.check("the next picture, against one before", float(apart.max()), 0, "levels")

    def _memory(self, host: ComfyUI) -> None:
        runs, settling = (4, 1) if self.options.small else (10, 3)
        found = []
        for number in range(runs):
            host.run(graph(_steps(self.options), seed=100 + number))
            found.append(host.memory())
        for what, before in found[settling].items():
            sizes = [memory[what] / 2**20 for memory in found]
            self.report.check(
                f"memory of the {what}, run {settling + 1} to {runs}",
                sizes[-1] - before / 2**20, GROWTH[what], "MiB",
                ", ".join(f"{size:,.0f}" for size in sizes),
            )  # fmt: skip


def graph(steps: int, weights: str = "default", seed: int = SEED) -> Prompt:
    """The basic edit on a bundled scene; node 5 shows the photo, node 6 what was painted."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("PBELoader", checkpoint="bundled demo", weight_dtype=weights, attention="auto"),
        "2": node("PBEExampleInputs", scene=SCENE),
        "3": node("PBEExemplarEncoder", encoder=["1", 1], exemplar=["2", 2], fit="squash",
                  merge="one each"),
        "4": node("PBEInpaintSampler", model=["1", 0], positive=["3", 0], negative=["3", 1],
                  vae=["1", 2], image=["2", 0], mask=["2", 1], seed=seed, steps=steps,
                  similarity=SIMILARITY, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
                  region="auto", context=1.8, resolution=0, blend=-1),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("PreviewImage", images=["4", 2]),
    }  # fmt: skip


def _steps(options: Options) -> int:
    return 4 if options.small else 20
