"""Configurations: what is bundled, what is refused and in which words, what overrides what."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import RunConfig, bundled_configs, load_config


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_bundled_configurations_are_valid() -> None:
    assert {"demo", "demo-first-stage"} <= set(bundled_configs())
    demo, first_stage = load_config("demo"), load_config("demo-first-stage")
    assert (first_stage.stage, demo.stage) == ("first_stage", "diffusion")
    assert demo.init is not None and demo.init.parent == first_stage.out


def test_defaults_are_the_papers() -> None:
    config = RunConfig()
    assert config.model == "v1" and config.tokens == "class" and not config.train_tower
    assert config.drop_condition == 0.2 and config.batch_size == 256
    assert config.min_snr == 0 and config.ema == 0
    assert config.optim.lr == 1e-5 and config.optim.warmup_steps == 10_000
    assert config.optim.weight_decay == 0.01 and config.data.geometry_variants is None


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    name = write(tmp_path / "run.toml", "steps = 7\nbatch_size = 2\n[optim]\nlr = 0.5\n")
    config = load_config(name, ["--steps", "9", "--optim.clip", "0.25"])
    assert (config.steps, config.batch_size) == (9, 2)
    assert (config.optim.lr, config.optim.clip) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 7", "unknown entry 'stepz'"),
        ("[optim]\nlearning_rate = 1", "unknown entry 'optim.learning_rate'"),
        ("steps = 0", "steps = 0 is wrong"),
        ("[data]\nworkers = -1", "data.workers = -1 is wrong"),
        ('model = "huge"', "model = 'huge' is wrong"),
        ("steps = = 1", "run.toml is not valid TOML"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_config(write(tmp_path / "run.toml", text))


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no configuration 'nothing'.*'demo'"):
        load_config("nothing")


def test_unknown_override_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config("demo", ["--stepz", "9"])
    assert stop.value.code == 2
    assert "--stepz" in "".join(capsys.readouterr())
