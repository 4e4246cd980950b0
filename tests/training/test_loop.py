"""Runs in this process: resume, accumulation, averages, figures, numbers gone bad."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from pbe_model.checkpoints.official_names import TOWER
from training import checkpoints as state
from training.cli import main
from training.config import to_toml
from training.loop import Trainer, train
from training.stages.first_stage import FirstStageLoss

from .runs import changed, digest, logged, newest, run_config


def test_a_run_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    options = {"ema.decay": 0.9, "ema.lengths": [0.1, 0.2], "log.every": 3, "checkpoint.every": 2}
    whole = run_config(photos, tmp_path / "whole", steps=6, **options)
    parts = run_config(photos, tmp_path / "parts", steps=2, **options)
    train(whole)
    train(parts)
    train(changed(parts, steps=6))
    assert digest(whole.out) == digest(parts.out)
    # The window of the figures lives on too, but that a run's last step closes it.
    assert [entry["step"] for entry in logged(whole.out)] == [3, 6]
    assert logged(whole.out)[-1] == logged(parts.out)[-1]
    pictures = [path.name for path in (whole.out / "samples").iterdir()]
    assert sorted(pictures) == ["step-00000000.png", "step-00000006.png"]


def test_an_optimizer_of_another_package_that_trains_with_other_weights(
    photos: Path, tmp_path: Path
) -> None:
    """Checkpoints hold the weights it has found, and a run goes on from them."""
    options = {"optim.name": "schedulefree.AdamWScheduleFree", "checkpoint.every": 2}
    whole = run_config(photos, tmp_path / "whole", steps=4, **options)
    parts = run_config(photos, tmp_path / "parts", steps=2, **options)
    train(whole)
    train(parts)
    module = train(changed(parts, steps=4))
    assert digest(whole.out) == digest(parts.out)
    weights, saved = dict(module.named_parameters()), newest(parts.out)["module"]
    assert any(not torch.equal(weights[name], saved[name]) for name in saved)


def test_figures_are_means_since_the_last_line(photos: Path, tmp_path: Path) -> None:
    often = run_config(photos, tmp_path / "often", steps=4)
    seldom = run_config(photos, tmp_path / "seldom", steps=4, **{"log.every": 2})
    train(often)
    train(seldom)
    each, pairs = logged(often.out), logged(seldom.out)
    assert [entry["step"] for entry in pairs] == [2, 4]
    for pair, (one, two) in zip(pairs, (each[:2], each[2:]), strict=True):
        assert pair["loss"] == pytest.approx((one["loss"] + two["loss"]) / 2, rel=1e-6)
        assert pair["lr"] == two["lr"]


def test_losses_by_timestep_average_to_the_error(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    config = run_config(photos, tmp_path, first_stage, steps=2, batch_size=64)
    train(config)
    for entry in logged(config.out):
        bins = [entry[f"loss_t{tenth}0"] for tenth in range(10)]
        assert bins[0] > bins[9] > 0  # an untrained denoiser, the identity, is right in noise
        assert min(bins) < entry["eps_mse"] < max(bins)


def test_accumulated_steps_equal_one_batch(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    one = run_config(photos, tmp_path / "one", first_stage, steps=3)
    two = changed(one, out=tmp_path / "two", accumulate=2)
    train(one)
    train(two)
    for ours, theirs in zip(logged(one.out), logged(two.out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = newest(one.out)["module"], newest(two.out)["module"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def test_a_changed_batch_size_goes_on_after_the_last_sample_seen(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(photos, tmp_path, steps=2)
    train(config)
    train(changed(config, steps=3, batch_size=6))
    assert newest(tmp_path)["samples"] == 2 * 4 + 6
    said = "resuming from step 2 with changed settings: batch_size 4 -> 6"
    assert said in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": "all"}, "holds other trainable parameters than this configuration has"),
        (
            {"optim.name": "torch.optim.Rprop"},
            r"made with optim\.name torch\.optim\.AdamW, not torch\.optim\.Rprop",
        ),
    ],
)
def test_a_run_that_cannot_go_on_says_why(
    photos: Path, tmp_path: Path, first_stage: Path, options: dict, words: str
) -> None:
    train(run_config(photos, tmp_path, first_stage, steps=1))
    with pytest.raises(ValueError, match=words):
        train(run_config(photos, tmp_path, first_stage, steps=2, **options))


def test_other_frozen_weights_are_refused_or_named(
    photos: Path, tmp_path: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints do not hold them: another choice of parts is another model, a path may move."""
    out = tmp_path / "run"
    train(run_config(photos, out, small_checkpoint, steps=1))
    with pytest.raises(
        ValueError, match=r"made with init_parts .*'unet'.*, not \['vae', 'encoder'"
    ):
        train(run_config(photos, out, small_checkpoint, steps=2, init_parts=("vae", "encoder")))
    reordered = ("encoder", "vae", "unet")
    train(run_config(photos, out, small_checkpoint, steps=2, init_parts=reordered))
    assert newest(out)["step"] == 2 and "init_tower" not in capsys.readouterr().out
    tensors = load_file(small_checkpoint)
    tower = {n.removeprefix(TOWER): t for n, t in tensors.items() if n.startswith(TOWER)}
    save_file(tower, tmp_path / "tower.safetensors")
    towers = {"init_tower": tmp_path / "tower.safetensors"}
    train(run_config(photos, out, small_checkpoint, steps=3, **towers))
    said = f"init_tower was None and is now {tmp_path / 'tower.safetensors'}: the image tower is"
    assert said in "".join(capsys.readouterr())


def test_the_loss_is_at_most_five_calls_below_the_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever debugs a loss reads its stack; frames of torch and accelerate do not count."""
    (tmp_path / "run.toml").write_text(to_toml(run_config(photos, tmp_path / "run", steps=1)))
    forward, root, stacks = FirstStageLoss.forward, Path(__file__).parents[2], []

    def watched(loss: FirstStageLoss, batch: dict) -> dict:
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        ours = (root / "training", root / "pbe_model")
        stacks.append([f.name for f in frames if any(f.is_relative_to(o) for o in ours)])
        return forward(loss, batch)

    monkeypatch.setattr(FirstStageLoss, "forward", watched)
    assert main(["train", str(tmp_path / "run.toml")]) == 0
    assert stacks == [["cli.py", "common.py", "cli.py", "loop.py", "loop.py"]]


class Reads(TorchFunctionMode):
    """Counts what makes the CPU wait for a tensor's contents."""

    names = ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in self.names:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_reads_from_the_device_once(
    photos: Path, tmp_path: Path, small_checkpoint: Path, accumulate: int
) -> None:
    config = run_config(photos, tmp_path, small_checkpoint, accumulate=accumulate)
    trainer = Trainer(config)
    batches = trainer._batches()

    def update() -> None:
        found = trainer._forward_and_backward(batches)
        norm = trainer.optimizer.clip(config.optim.clip)
        trainer._step_if_finite(trainer._reduce(found, norm, stop=False, failed=False).wait())

    update()  # the first one fills the tables of the noise schedule, on the CPU
    with Reads() as reads:
        update()
    # The loader's own tensors, on the CPU, say how many photos were skipped.
    assert reads.found == ["__int__"] * accumulate + ["tolist"]
    assert trainer.window.updates == 2


def test_gradient_checkpointing_changes_nothing(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    plain = run_config(photos, tmp_path / "plain", first_stage, steps=2)
    train(plain)
    train(changed(plain, out=tmp_path / "cheap", gradient_checkpointing=True))
    assert digest(plain.out) == digest(tmp_path / "cheap")


def test_batch_that_cannot_be_split_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size 4 cannot be split.*multiple of 3"):
        train(run_config(photos, tmp_path, accumulate=3))


def test_loss_that_is_not_finite_stops_the_run(photos: Path, tmp_path: Path) -> None:
    wild = {"optim.lr": 1e25, "optim.warmup_steps": 0, "checkpoint.every": 1}
    config = run_config(photos, tmp_path / "run", steps=5, **wild)
    with pytest.raises(ValueError, match=r"the loss at step 2 is (nan|inf).*; lower optim.lr"):
        train(config)
    assert [p.name for p in state.checkpoints(config.out / "checkpoints")] == ["step-00000001.pt"]
    assert logged(config.out)[-1]["step"] == 1


def test_a_bad_update_is_left_out_when_that_is_allowed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch of pictures that are not numbers: nothing of it stays."""
    from training.stages.first_stage import FirstStage

    batch = FirstStage.batch

    def with_one_bad(stage: FirstStage, loaded: dict) -> dict:
        made = batch(stage, loaded)
        if 4 in loaded["index"]:
            made["image"] = made["image"] * float("nan")
        return made

    monkeypatch.setattr(FirstStage, "batch", with_one_bad)
    config = run_config(photos, tmp_path / "run", steps=4, **{"optim.skip_bad_steps": 1})
    module = train(config)
    assert all(p.isfinite().all() for p in module.parameters())
    assert newest(config.out)["samples"] == 16
    with pytest.raises(ValueError, match="the loss at step 2 is nan"):
        train(run_config(photos, tmp_path / "strict", steps=4))


def test_trained_module_holds_the_average(photos: Path, tmp_path: Path) -> None:
    module = train(run_config(photos, tmp_path, steps=2, **{"ema.decay": 0.9}))
    saved = newest(tmp_path)
    weights = dict(module.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in saved["ema"]["classic"].items())
    assert any(not torch.equal(weights[n], saved["module"][n]) for n in weights)
    assert saved["figures"].keys() >= {"val_psnr", "latent_std"}
