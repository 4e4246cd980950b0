"""The plan of a run: FLOPs against closed forms, memory against a real step, hours, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pbe_model.config import CONFIGS
from pbe_model.sampling.schedule import NoiseSchedule
from training.cli import main
from training.config import OptimConfig, RunConfig, load_config
from training.optim import gradients
from training.optim.gradients import Bf16GradOptimizer, keeps_bf16_grads
from training.planning import hardware, measuring
from training.planning.counting import (
    StepCount,
    autocast,
    count_flops,
    count_step,
    empty_batch,
    loss_modules,
)
from training.planning.report import Plan, describe, flops_per_sample, optimizer_bytes

from ..runs import SMALL


def config(**options) -> RunConfig:
    return RunConfig.model_validate({"model": "tiny", "batch_size": 8, **options})


def bank(**options) -> RunConfig:
    return config(data={"geometry_variants": 1}, **options)


def conv(channels: int, out: int, side: int, kernel: int = 3) -> int:
    return 2 * channels * out * side * side * kernel * kernel


def residual(channels: int, out: int, side: int) -> int:
    shortcut = conv(channels, out, side, 1) if channels != out else 0
    return conv(channels, out, side) + conv(out, out, side) + 2 * 128 * out + shortcut


def transformer(width: int, side: int, context: int) -> int:
    tokens = side * side
    attention = 4 * 2 * tokens * width**2 + 2 * 2 * tokens**2 * width  # projections; scores, sum
    one_token = 2 * context * width + 2 * width**2
    feed_forward = 2 * tokens * width * 8 * width + 2 * tokens * 4 * width * width
    return attention + one_token + feed_forward + 2 * conv(width, width, side, 1)


def test_denoiser_has_the_closed_form_of_its_sizes() -> None:
    """The small UNet by hand: widths 32 and 64, latents of 8, attention at the lower level."""
    context = SMALL.unet.context_dim
    blocks = [
        2 * 32 * 128 + 2 * 128 * 128,  # time embedding
        conv(9, 32, 8), residual(32, 32, 8), conv(32, 32, 4),
        residual(32, 64, 4), transformer(64, 4, context),
        residual(64, 64, 4), transformer(64, 4, context), residual(64, 64, 4),
        residual(128, 64, 4), transformer(64, 4, context),
        residual(96, 64, 4), transformer(64, 4, context), conv(64, 64, 8),
        residual(96, 32, 8), residual(64, 32, 8), conv(32, 4, 8),
    ]  # fmt: skip
    forward, backward = count_flops(bank(), SMALL)["denoiser"]
    assert forward == sum(blocks)
    # Each product has two in the backward pass, but the input and the timestep want no gradient.
    assert backward == 2 * forward - conv(9, 32, 8) - 2 * 32 * 128


def test_frozen_parts_have_no_backward_and_the_bank_spares_the_encodings() -> None:
    fresh, banked = count_flops(config(), SMALL), count_flops(bank(), SMALL)
    assert fresh["image tower"][0] > 0 and fresh["image tower"][1] == 0
    assert fresh["first stage, photo"] == fresh["first stage, hole"] > (0.0, 0.0)
    assert banked == {name: fresh[name] for name in ("image tower", "mapper", "denoiser")}
    trained = count_flops(bank(train_tower=True), SMALL)["image tower"]
    # The pixels want no gradient: the patch embedding has one product backward, the rest two.
    patches = 2 * 4 * 3 * 8 * 8 * 64
    assert trained == (fresh["image tower"][0], 2 * trained[0] - patches)


def test_more_tokens_cost_more() -> None:
    one, all_ = (
        count_flops(bank(tokens=tokens), replace(SMALL, tokens=tokens))
        for tokens in ("class", "all")
    )
    assert all_["denoiser"][0] > one["denoiser"][0]
    assert all_["mapper"][0] > 4 * one["mapper"][0]


def test_first_stage() -> None:
    count = count_step(config(stage="first_stage"), SMALL)
    assert set(count.flops) == {"encoder", "decoder"}
    assert all(1.9 < backward / forward < 2.01 for forward, backward in count.flops.values())
    assert set(count.parameters) == {"trained"}


@pytest.mark.slow
def test_lora_trains_little() -> None:
    whole, small = count_flops(bank(), SMALL), count_step(bank(lora={"rank": 2}), SMALL)
    assert small.trained_bytes < small.weight_bytes / 20
    # Weights that are not trained have no product of their own in the backward pass.
    assert small.flops["denoiser"][1] < 0.7 * whole["denoiser"][1]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("torch.optim.AdamW", {}, 8),
        ("torch.optim.SGD", {}, 0),
        ("torch.optim.SGD", {"momentum": 0.9}, 4),
        ("torch.optim.Adafactor", {}, 8 / 256),
    ],
)
def test_states_of_any_optimizer(name: str, options: dict, expected: float) -> None:
    found = optimizer_bytes(OptimConfig(name=name, options=options))
    assert found == pytest.approx(expected, abs=1e-3)


STEP = StepCount(
    flops={"denoiser": (1e12, 2e12)},
    parameters={"trained": 100},
    weight_bytes=500,
    trained_bytes=400,
    update_bytes=400,
    fixed=np.array([0, 100]),
    per_sample=np.array([30, 10]),
)


def plan_of(run: RunConfig, **options) -> Plan:
    """A plan of round numbers."""
    known = {"gpus": 1, "mfu": 0.5, "price": None, "kinds": ["v100"], "optimizer_bytes": 8.0}
    known |= {"plain": STEP, "checkpointed": replace(STEP, flops={"all": (1e12, 3e12)})}
    return Plan(config=run, sizes=SMALL, encoding=0.0, **{**known, **options})


def test_memory_of_every_batch_from_one_count() -> None:
    assert [STEP.peak(b) for b in (1, 5, 6, 10)] == [110, 150, 180, 300]
    assert [STEP.largest_batch(room) for room in (99, 110, 150, 300)] == [0, 1, 5, 10]


def test_resident_memory_of_averages_processes_and_accumulation() -> None:
    plan = plan_of(config())
    assert plan.resident() == {"weights": 500, "optimizer states": 800, "averages": 0}
    assert plan.memory(1, checkpointing=False) == 1300 + 400  # the gradients, after all else
    assert plan.memory(20, checkpointing=False) == 1300 + 600
    more = plan_of(config(ema={"decay": 0.9, "lengths": (0.05, 0.1)}, accumulate=2), gpus=2)
    assert more.resident() == {
        **plan.resident(), "averages": 3 * 400, "gradient buckets": 400, "gradients": 400
    }  # fmt: skip
    assert plan.largest_batch(1.0, checkpointing=False) == 0  # which CUDA takes


def test_hours_and_costs() -> None:
    run = config(steps=1000, precision="fp16")
    plan = plan_of(run, gpus=4, price=2.0)
    seconds = 8000 * 3e12 / (4 * 125e12 * 0.5)
    assert plan.hours("v100") == pytest.approx(seconds / 3600)
    assert plan.to_dict()["price"]["v100"] == pytest.approx(2.0 * 4 * seconds / 3600)
    assert plan.hours("t4") == pytest.approx(seconds / 3600 * 125 / 65)
    again = plan_of(config(steps=1000, precision="fp16", gradient_checkpointing=True), gpus=4)
    assert again.hours("v100") == pytest.approx(seconds / 3600 * 4 / 3)
    assert plan_of(config(precision="bf16")).hours("v100") is None


@pytest.mark.parametrize(
    ("precision", "fresh", "tolerance"),
    # A CPU without convolutions in bf16 unfolds the pictures, which the count does not see.
    [
        ("no", False, 0.05),
        pytest.param("no", True, 0.05, marks=pytest.mark.slow),
        pytest.param("bf16", False, 0.25, marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_real_step(precision: str, fresh: bool, tolerance: float) -> None:
    """What the count foresees is what torch's allocator then hands out."""
    run, batch = (config if fresh else bank)(precision=precision), 8
    foreseen = count_step(run, SMALL, like_cuda=False).peak(batch)
    module, vae = loss_modules(run, SMALL, NoiseSchedule.linear(SMALL.schedule))
    if keeps_bf16_grads(run, processes=1):
        Bf16GradOptimizer(module, torch.optim.SGD(module.parameters()))
    with torch.profiler.profile(profile_memory=True) as profile:
        values = empty_batch(run, SMALL, vae, batch)
        values = {name: torch.zeros_like(value) for name, value in values.items()}
        with autocast(precision):
            loss = module(values)["loss"]
        loss.backward()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = profile.profiler.kineto_results.events()
    sizes = [
        e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"
    ]
    assert foreseen == pytest.approx(np.cumsum(sizes).max(), rel=tolerance)


def test_gradients_of_16_bits_where_they_are_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "CHUNK_BYTES", 0)
    run = bank(precision="bf16")
    alone, together = (count_step(run, SMALL, processes=n) for n in (1, 2))
    assert together.update_bytes == together.trained_bytes
    assert alone.update_bytes == pytest.approx(0.5 * alone.trained_bytes, rel=0.05)
    # What the backward pass leaves are the gradients.
    for count in (alone, together):
        assert count.fixed[-1] == pytest.approx(count.update_bytes, rel=0.05)


@pytest.mark.slow
def test_checkpointing_trades_products_for_memory() -> None:
    plain, less = (count_step(bank(), SMALL, checkpointing=on) for on in (False, True))
    forward, backward = plain.flops["denoiser"]
    assert less.flops["denoiser"][0] == forward
    assert backward < less.flops["denoiser"][1] <= forward + backward
    assert less.per_sample.max() < 0.5 * plain.per_sample.max()
    assert less.per_sample[-1] < 0.1 * less.per_sample.max()  # nothing stays
    # What is computed again is not the model's work.
    assert flops_per_sample(bank(gradient_checkpointing=True)) == plain.total_flops


def test_cards_by_their_driver_names() -> None:
    known = {
        "Tesla V100-SXM2-32GB": "v100",
        "Tesla T4": "t4",
        "NVIDIA GeForce RTX 3090": "rtx3090",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA L40S": "l40s",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-PCIE-40GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100",
        "AMD Instinct MI300X": "mi300x",
    }
    assert {name: hardware.kind_of(name) for name in known} == known
    others = ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 PCIe", "NVIDIA RTX A1000",
              "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
              "NVIDIA L40", "NVIDIA GeForce RTX 4090 D"]  # fmt: skip
    assert {hardware.kind_of(name) for name in others} == {None}


def test_peak_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100-SXM2-32GB")
    assert hardware.peak_flops(torch.device("cuda"), "fp16") == 125e12
    assert hardware.peak_flops(torch.device("cpu"), "no") is None
    assert hardware.KINDS["v100"].flops("bf16") is None
    assert hardware.KINDS["v100"].flops("fp16") == 125e12
    assert hardware.KINDS["a100"].flops("no") == 19.5e12


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "tiny"\nprecision = "bf16"\ndata.geometry_variants = 1\n')
    words = ["plan", "--gpus", "2", str(file), "--kind", "a100", "--steps", "10", "--json"]
    assert main([*words, "--kind", "v100", "--batch_size", "6", "--price", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpus"] == 2 and found["samples"] == 60
    assert found["hours"]["a100"] > 0 and found["hours"]["v100"] is None
    cpu = found["this_cpu"]
    assert cpu["own"] and cpu["hours"] > 0
    rate = 60 * found["flops_per_sample"]["forward_and_backward"] / (cpu["hours"] * 3600)
    assert rate == pytest.approx(cpu["flops"])


def test_a_large_step_is_estimated_from_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.01)
    monkeypatch.setattr(measuring, "_SMALL", 1.0)
    rate = measuring.cpu_rate(config(), SMALL)
    assert not rate.own and rate.threads == torch.get_num_threads() and rate.flops > 1e6
    page = str(plan_of(config(precision="bf16"), kinds=["a100"], cpu=rate))
    assert "an estimate, from a small model's step" in page
    assert max(map(len, page.splitlines()[-2:])) <= 100


def test_page() -> None:
    step = replace(STEP, per_sample=STEP.per_sample * 2**25)  # about a GiB a sample
    options = {"plain": step, "checkpointed": step, "kinds": ["v100", "a100"], "price": 3.5}
    page = str(plan_of(config(precision="bf16"), **options))
    lines = page.splitlines()
    assert len(lines) < 45 and max(map(len, lines)) <= 100
    assert "no bf16" in page and "denoiser" in page and "cost" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kind", "abacus"], "unknown card 'abacus'"),
        (["--mfu", "35"], "mfu is 35"),
        (["--price", "-1"], "price is -1"),
        (["--gpus", "3"], "256 cannot be split over 3 GPUs"),
        (["--gpus", "x"], "--gpus"),
        (["--optim.name", "torch.optim.Nothing"], "torch.optim.Nothing"),
    ],
)
def test_bad_input(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "tiny"\n')
    assert main(["plan", str(file), *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and sentence in printed.err


@pytest.mark.slow
def test_a_dry_run_is_a_configuration_again(tmp_path: Path) -> None:
    run = bank(steps=7)
    file = tmp_path / "again.toml"
    file.write_text(describe(run))
    assert load_config(str(file)) == run
    assert "# Peak memory of one process" in file.read_text()


@pytest.mark.slow
def test_denoiser_at_official_size() -> None:
    """SD 1.4's UNet counts 797 GFLOP with 77 tokens; one token spares its cross-attentions."""
    run = RunConfig(data={"geometry_variants": 1})  # pyright: ignore[reportArgumentType]
    forward, _ = count_flops(run, CONFIGS["v1"])["denoiser"]
    widths = [(320, 4096, 5), (640, 1024, 5), (1280, 256, 5), (1280, 64, 1)]
    cross = sum(n * (4 * t * c * c + 4 * 77 * 768 * c + 4 * t * 77 * c) for c, t, n in widths)
    one = sum(n * (2 * 768 * c + 2 * c * c) for c, _, n in widths)
    assert forward + cross - one == pytest.approx(797e9, rel=0.01)
