"""How fast it paints at the published size: guided step, first stage, whole edits, folders."""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.clock import Job, captured, interleaved, matmul_rate, milliseconds, peak_gib
from benchmarks.gpu.networks import HALF, sizes, unet_arguments
from benchmarks.gpu.options import Options
from benchmarks.gpu.report import Report, free
from pbe_model import PaintByExample, PBEConfig, edit
from pbe_model.cli import batch
from pbe_model.editing.edit import PRESETS
from pbe_model.networks.attention import select_attention, xformers_works
from pbe_model.networks.unet import UNet
from pbe_model.sampling.samplers import guidance
from pbe_model.scenes import SCENES

SIMILARITY = 5.0
Step = Callable[[], Tensor]


def prepare(options: Options) -> None:
    """Import the peer and count a step, which takes seconds and no card."""
    config = sizes(options.small)
    for factor in (1, 2):
        _step_flops(config, factor * config.resolution // config.vae.downscale)
    if importlib.util.find_spec("diffusers"):
        peer_unet(sizes(small=True))


def run(report: Report, options: Options) -> None:
    """Steps at 512 pixels in fp16, what users wait for, then the other sizes and types."""
    bench = _Steps(report, options)
    bench.say_what_is_missing()
    side = bench.config.resolution // bench.config.vae.downscale
    report.attempt("matrix product", bench.measure_rate)
    bench.measure(side, "fp16")
    report.attempt("whole edits", lambda: _edits(report, options))
    bench.measure(2 * side, "fp16")
    bench.measure(side, "bf16")
    if not options.small:
        bench.measure(2 * side, "bf16")
    report.attempt("compiled step", lambda: bench.measure_compiled(side),
                   needs=75 if options.cuda else 0)  # fmt: skip


class _Steps:
    """The guided step of ours and of diffusers, in turn."""

    def __init__(self, report: Report, options: Options) -> None:
        self.report = report
        self.options = options
        self.device = options.on
        self.config = sizes(options.small)
        self.rates: dict[str, float] = {}
        self.diffusers = importlib.util.find_spec("diffusers") is not None
        self.seconds = 0.05 if options.small else 1.5

    def say_what_is_missing(self) -> None:
        """Rows for the ways that this machine does not have."""
        if not self.diffusers:
            self.report.skip("guided step: diffusers", "not installed")
        if not self.options.cuda:
            for name in ("cuDNN autotuned", "CUDA graph", "xformers"):
                self.report.skip(f"guided step: ours, {name}", "needs CUDA")
        elif not xformers_works("cuda"):
            self.report.skip("guided step: ours, xformers", "not installed, or finds no kernel")

    def measure_rate(self) -> None:
        """What the card reaches at most, to compare with."""
        for name, dtype in HALF.items():
            if name == "fp16" and not self.options.cuda:
                continue  # takes long
            self.rates[name] = matmul_rate(self.device, dtype, 256 if self.options.small else 8192)
            self.report.value(f"matrix product, {name}", self.rates[name] / 1e12, "TFLOP/s")

    def measure(self, side: int, precision: str) -> None:
        """All ways to make a step, by the side of the latent."""
        title = self._title(side, precision)
        if self.report.left < (8 if self.options.cuda else 0):
            self.report.skip(title, f"no time left: {self.report.left:.0f} s")
            return
        arguments = unet_arguments(self.config, self.device, HALF[precision], side=side)
        jobs: dict[str, Job] = {}
        for name, make in self._ways(precision, arguments).items():
            self.report.attempt(
                f"{title}: {name}", lambda name=name, make=make: self._warm(jobs, name, make, title)
            )
        self.report.attempt(title, lambda: self._time(title, jobs, arguments, precision))
        jobs.clear()
        free()

    def measure_compiled(self, side: int) -> None:
        """Ours, compiled whole; on a CPU only traced."""
        unet = self._ours("fp16", channels_last=True)
        arguments = unet_arguments(self.config, self.device, HALF["fp16"], side=side)
        backend = "inductor" if self.options.cuda else "eager"
        start = time.perf_counter()
        compiled = torch.compile(unet, backend=backend, fullgraph=True)
        jobs = {
            "ours, compiled": _step(compiled, arguments),
            "ours, channels-last": _step(unet, arguments),
        }
        with torch.inference_mode():  # a compiler takes other modes for other programs
            for job in jobs.values():
                job()
                job()
        took = time.perf_counter() - start
        self.report.value("compiling the denoiser", took, "s", backend)
        self._time(f"{self._title(side, 'fp16')}, compiled", jobs, arguments, "fp16")

    def _title(self, side: int, precision: str) -> str:
        return f"guided step, {side * self.config.vae.downscale} px, {precision}"

    def _ways(self, precision: str, arguments: tuple[Tensor, ...]) -> dict[str, Callable[[], Step]]:
        def ours(channels_last: bool, attention: str = "sdpa") -> Step:
            return _step(self._ours(precision, channels_last, attention), arguments)

        def autotuned() -> Step:
            step = ours(True)

            def run() -> Tensor:
                torch.backends.cudnn.benchmark = True
                try:
                    return step()
                finally:
                    torch.backends.cudnn.benchmark = False

            return run

        def diffusers(channels_last: bool) -> Step:
            return _peer_step(self._peer(precision, channels_last), arguments)

        ways: dict[str, Callable[[], Step]] = {"ours, SDPA": lambda: ours(False)}
        if self.diffusers:
            ways["diffusers"] = lambda: diffusers(False)
        ways["ours, channels-last"] = lambda: ours(True)
        if self.options.cuda:
            ways["ours, channels-last, cuDNN autotuned"] = autotuned
            ways["ours, channels-last, CUDA graph"] = lambda: captured(ours(True))
            if xformers_works("cuda", HALF[precision]):
                ways["ours, xformers"] = lambda: ours(False, "xformers")
            if self.diffusers:
                ways["diffusers, channels-last"] = lambda: diffusers(True)
        return ways

    def _warm(self, jobs: dict[str, Job], name: str, make: Callable[[], Step], title: str) -> None:
        with torch.inference_mode():
            job = make()
            job()
            job()
            peak = peak_gib(job, self.device)
        if peak:  # a graph has its memory already
            self.report.value(f"{title}: {name}, memory beside the weights", peak, "GiB")
        jobs[name] = job

    def _time(
        self, title: str, jobs: dict[str, Job], arguments: tuple[Tensor, ...], precision: str
    ) -> None:
        with torch.inference_mode():
            flops = _step_flops(self.config, arguments[0].shape[-1])
            least = 1 if self.options.small else 3
            times = interleaved(jobs, self.device, seconds=self.seconds, least=least)
        first = next(iter(times.values()))
        for name, found in times.items():
            rate = flops / (found / 1000)
            detail = f"{rate / 1e12:.3g} TFLOP/s"
            if precision in self.rates:
                detail += f", {rate / self.rates[precision]:.0%} of the matrix product's"
            detail += f", {first / found:.2f} times as fast as the first"
            self.report.value(f"{title}: {name}", found, "ms", detail)

    def _ours(self, precision: str, channels_last: bool, attention: str = "sdpa") -> UNet:
        with torch.device(self.device):
            backend = select_attention(attention, self.device, HALF[precision])
            unet = UNet(self.config.unet, attention=backend)
        return _half(unet, precision, channels_last)

    def _peer(self, precision: str, channels_last: bool) -> nn.Module:
        with torch.device(self.device):
            unet = peer_unet(self.config)
        return _half(unet, precision, channels_last)


@functools.cache
def _step_flops(config: PBEConfig, side: int) -> float:
    """Of a step of diffusers' kind, two whole passes, so that rates compare like with like."""
    with torch.device("meta"):
        unet = UNet(config.unet)
        x, t, context = unet_arguments(config, torch.device("meta"), side=side)
        with FlopCounterMode(display=False) as counter:
            # A second token, or cross-attention would take its short cut.
            unet(x.repeat(2, 1, 1, 1), t.repeat(2), context.repeat(1, 2, 1))
    return counter.get_total_flops()


def peer_unet(config: PBEConfig) -> nn.Module:
    """diffusers' denoiser of these sizes."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = config.unet
    attentive = [2**i in unet.attention_resolutions for i in range(len(unet.channel_mult))]
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attentive)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attentive))
    return UNet2DConditionModel(
        in_channels=unet.in_channels,
        layers_per_block=unet.num_res_blocks,
        block_out_channels=tuple(unet.model_channels * m for m in unet.channel_mult),
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=unet.context_dim,
        attention_head_dim=unet.num_heads,
        norm_num_groups=unet.norm_groups,
    )


def _half(unet: Any, precision: str, channels_last: bool) -> Any:
    unet = unet.to(HALF[precision]).eval().requires_grad_(False)
    return unet.to(memory_format=torch.channels_last) if channels_last else unet


def _step(unet: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Step:
    """Ours: the picture goes in once."""
    x, t, context = arguments

    def step() -> Tensor:
        negative, positive = unet(x, t, context).chunk(2)
        return guidance(negative, positive, SIMILARITY)

    return step


def _peer_step(unet: Any, arguments: tuple[Tensor, ...]) -> Step:
    """As diffusers' pipeline does it: the picture goes in twice."""
    x, t, context = arguments

    def step() -> Tensor:
        said = unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample
        negative, positive = said.chunk(2)
        return guidance(negative, positive, SIMILARITY)

    return step


def _edits(report: Report, options: Options) -> None:
    """First stage, edits and folders with a model of the published size in fp16."""
    config, device = sizes(options.small), options.on
    dtype = torch.float16 if options.cuda else torch.float32
    with torch.device(device):
        model = PaintByExample(config)
    model = model.to(dtype).eval().requires_grad_(False)
    side = config.resolution
    photo, exemplar = torch.rand(side * 3 // 2, side * 2, 3), torch.rand(side, side, 3)
    hole_mask = torch.zeros(photo.shape[:2])
    hole_mask[side // 4 : side, side // 2 : side * 5 // 4] = 1

    def first_stage() -> None:
        for name, factor in (("", 1), (", twice the side", 2)):
            image = torch.rand(1, 3, factor * side, factor * side, device=device, dtype=dtype)
            with torch.inference_mode():
                latent = model.encode(image)
                jobs = {"encodes": lambda i=image: model.encode(i),
                        "decodes": lambda z=latent: model.decode(z)}  # fmt: skip
                for job in jobs.values():
                    job()
                for verb, found in interleaved(jobs, device, seconds=0.3, least=2).items():
                    report.value(f"first stage {verb} {factor * side} px{name}", found, "ms")

    def whole(name: str, needs: float, **arguments: Any) -> None:
        def timed() -> None:
            seconds = milliseconds(lambda: edit(model, photo, hole_mask, exemplar, **arguments),
                                   device) / 1000  # fmt: skip
            count = arguments.get("num_images", 1)
            report.value(f"edit, {name}", count / seconds, "images/s", f"{seconds:.3g} s")

        report.attempt(f"edit, {name}", timed, needs)

    few = {"steps": 2} if options.small else {}
    official = PRESETS["official"] | few
    edit(model, photo, hole_mask, exemplar, steps=2)
    whole("default, 20 steps", 1, **few)
    whole("official preset, 50 steps of PLMS", 2, **official)
    report.attempt("first stage", first_stage, needs=1)
    whole("default, 8 variations at once", 4, num_images=2 if options.small else 8, **few)
    report.attempt("folder", lambda: _folder(report, model, "of the published size", few), needs=6)
    bundled = PaintByExample.from_checkpoint(device=device, dtype=dtype)
    report.attempt("folder", lambda: _folder(report, bundled, "bundled", few), needs=6)


def _folder(report: Report, model: PaintByExample, which: str, options: dict[str, Any]) -> None:
    """`pbe batch` on the bundled scenes, files and all."""
    entries = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))["scenes"]
    if options:
        entries = entries[:2]
    files = {"photo": "image", "hole_mask": "mask", "exemplar": "exemplar"}
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            json.dumps({ours: str(SCENES / entry[name]["file"]) for name, ours in files.items()})
            for entry in entries
        ]
        path = Path(folder) / "edits.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        edits, problems = batch.read_edits(path, Path(folder) / "out", options, {})
        assert not problems, problems
        start = time.perf_counter()
        done = batch.run(edits, lambda: model, more_memory="take a larger card")
        seconds = time.perf_counter() - start
        report.value(f"pbe batch, model {which}", done.painted / seconds, "images/s",
                     f"{done.painted} painted, {done.failed} failed")  # fmt: skip
