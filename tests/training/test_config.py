"""Configurations: what is bundled, what is refused and in which words, what overrides what."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import RunConfig, bundled_configs, changed_settings, load_config, to_toml


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
    assert config.loss.drop_condition == 0.2 and config.batch_size == 256
    assert config.loss.prediction == "epsilon" and not config.loss.zero_terminal_snr
    assert config.loss.min_snr == 0 and config.loss.offset_noise == 0
    assert config.ema.decay == 0 and config.ema.lengths == () and config.lora.rank == 0
    assert config.optim.lr == 1e-5 and config.optim.warmup_steps == 10_000
    assert config.optim.weight_decay == 0.01 and config.data.geometry_variants is None
    assert config.data.recolour.probability == 0


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    name = write(tmp_path / "run.toml", "steps = 7\nbatch_size = 2\n[optim]\nlr = 0.5\n")
    config = load_config(name, ["--steps", "9", "--optim.clip", "0.25"])
    assert (config.steps, config.batch_size) == (9, 2)
    assert (config.optim.lr, config.optim.clip) == (0.5, 0.25)


def test_a_file_says_what_differs_from_its_base(tmp_path: Path) -> None:
    write(tmp_path / "below.toml", "base = 'demo'\nsteps = 7\n[optim]\nlr = 0.5\nclip = 2.0\n")
    name = write(tmp_path / "above.toml", "base = 'below.toml'\n[optim]\nlr = 0.25\n")
    config, demo = load_config(name), load_config("demo")
    assert (config.steps, config.optim.lr, config.optim.clip) == (7, 0.25, 2.0)
    assert (config.batch_size, config.optim.decay) == (demo.batch_size, demo.optim.decay)
    write(tmp_path / "below.toml", "base = 'above.toml'")
    with pytest.raises(ValueError, match=r"above\.toml is its own base"):
        load_config(name)


def test_dumped_configuration_reads_as_itself(tmp_path: Path) -> None:
    for name in bundled_configs():
        config = load_config(name, ["--optim.options", "eps", "1e-6"])
        assert load_config(write(tmp_path / "all.toml", to_toml(config))) == config


def test_changed_settings_are_all_but_the_folder() -> None:
    before = RunConfig()
    after = before.model_copy(
        update={
            "steps": 7,
            "out": Path("moved"),
            "batch_size": 8,
            "optim": before.optim.model_copy(update={"lr": 0.5}),
            "data": before.data.model_copy(update={"root": Path("other")}),
        }
    )
    found = changed_settings(before.model_dump(mode="json"), after.model_dump(mode="json"))
    assert found == {
        "batch_size": (256, 8),
        "data.root": ("data/demo", "other"),
        "optim.lr": (1e-5, 0.5),
        "steps": (100_000, 7),
    }


@pytest.mark.parametrize(("steps", "every"), [(3, 1), (350, 70), (100_000, 500)])
def test_pictures_come_as_often_as_fits_the_run(steps: int, every: int) -> None:
    assert RunConfig(steps=steps).sample_every == every
    assert RunConfig.model_validate({"steps": steps, "log": {"sample_every": 9}}).sample_every == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 7", "unknown entry 'stepz'; did you mean 'steps'"),
        ("[optim]\nlearning_rate = 1", "'optim.learning_rate'; did you mean 'optim.lr'"),
        ("learning_rate = 1", "'learning_rate'; did you mean 'optim.lr'"),
        ("lr = 1", "'lr'; did you mean 'optim.lr'"),
        ("epochs = 1", "'epochs'; did you mean 'steps'"),
        ("batch = 1", "'batch'; did you mean 'batch_size'"),
        ("[data]\nrecolor = 1", "'data.recolor'; did you mean 'data.recolour"),
        ("zzzzz = 1", "'zzzzz'; pbe-train train CONFIG --help lists them"),
        ("[data.exemplar]\nflop = 1", "unknown entry .*; did you mean 'data.exemplar.flip'"),
        ("[data.exemplar]\nflip = 'x'", "data.exemplar.flip = 'x' is wrong"),
        ("[data.exemplar]\nflip = 2", "data.exemplar.flip = 2 is wrong"),
        ("[data.recolour]\ngamma = 0.5", "data.recolour.gamma = 0.5 is wrong"),
        ("[loss]\nzero_terminal_snr = true", "loss.zero_terminal_snr needs loss.prediction = 'v'"),
        ("stage = 'first_stage'\nlora.rank = 4", "lora.rank is for the diffusion stage"),
        ("steps = 0", "steps = 0 is wrong"),
        ("[data]\nworkers = -1", "data.workers = -1 is wrong"),
        ('model = "huge"', "model = 'huge' is wrong"),
        ("base = 3", "base = 3 is wrong"),
        ("base = 'nothing'", "no configuration 'nothing'"),
        ("steps = = 1", "run.toml is not valid TOML"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_config(write(tmp_path / "run.toml", text))


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no configuration 'nothing'.*'demo'"):
        load_config("nothing")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--stepz", "--steps"), ("--learning-rate", "--optim.lr"), ("--batch=4", "--batch_size")],
)
def test_an_unknown_override_is_named_with_the_one_that_is_meant(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown entry '{word}'; did you mean '{meant}'"):
        load_config("demo", [word, "9"])


def test_entries_are_overridden_in_every_spelling() -> None:
    words = ["--no-train-tower", "--optim.options", "eps", "1e-6", "--data.geometry-variants=3"]
    config = load_config("demo", [*words, "--data.exemplar.antialias", "--batch_size", "2"])
    assert not config.train_tower and config.data.exemplar.antialias
    assert (config.data.geometry_variants, config.batch_size) == (3, 2)


@pytest.mark.parametrize("name", ["steps", "data.exemplar.flip", "data.recolour.probability"])
def test_override_out_of_range_ends_with_code_2(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config("demo", [f"--{name}", "-1"])
    assert stop.value.code == 2
    assert name.split(".")[-1] in "".join(capsys.readouterr())
