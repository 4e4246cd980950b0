"""Configurations, and commands that are given what is none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from training.cli import main
from training.config import MAX_CONFIG, RunConfig, load_config

from .files import (
    DEEP,
    TERMINAL,
    put,
    sentence,
)

# ---- configurations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5000, "run.toml is not valid TOML: nested too deeply"),
        ("a = " + "{b = " * 5000, "run.toml is not valid TOML: nested too deeply"),
        ("a." * 20_000 + "a = 1", "is not valid TOML: line 1 has more than 32 dots"),
        ("steps = " + "1" * 5000, "is not valid TOML"),
        (b"a = '\xff'", "is not valid TOML"),
        ("#" * (MAX_CONFIG + 1), "cannot read .* bytes, and 262,144 are the most"),
        ("model = '" + "x" * 9999 + "'", r"model = 'xx+ \.\.\.' is wrong"),
        ('model = "\\u001b[31m\\n"', r"model = '\\x1b\[31m\\n' is wrong"),
        ('"\\u001b[31m\\n" = 1', r"unknown entry '\\x1b\[31m\\n'"),
        ("x" * 9999 + " = 1", "unknown entry 'xx"),
        ("base = '" + "x" * 9999 + "'", "no configuration 'xx"),
        ('base = "a\\u0000b"', "no configuration"),
        ("[ema]\nlengths = [" + "0.1, \n" * 17 + "]", "ema.lengths = .* at most 16"),
        ("data.workers = 1000000", "data.workers = 1000000 is wrong"),
        ("data.geometry_variants = 100_000", "data.geometry_variants = 100000 is wrong"),
        ("batch_size = 1_000_000_000", "batch_size = 1000000000 is wrong"),
        ("accumulate = 1_000_000_000", "accumulate = 1000000000 is wrong"),
        ("steps = 100_000_000", "steps = 100000000 is wrong"),
        ("seed = 18446744073709551616", "seed = 18446744073709551616 is wrong"),
        ("threads = 1000000", "threads = 1000000 is wrong"),
        ("lora.rank = 1000000000", "lora.rank = 1000000000 is wrong"),
        ("optim.lr = nan", "optim.lr = nan is wrong"),
    ],
    ids=range(22),
)
def test_configurations(text: str | bytes, reason: str, tmp_path: Path) -> None:
    path = put(tmp_path / "run.toml", text)
    sentence(lambda: load_config(str(path)), reason)


def test_a_chain_of_bases(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path / f"{number}.toml", f"base = '{number + 1}.toml'")
    sentence(lambda: load_config(str(tmp_path / "0.toml")), "is the base of more than 10")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "Invalid JSON: recursion limit"),
        ('{"data":' * 9999, "Invalid JSON: recursion limit"),
        ("[]", "should be an object"),
        (b"\xff", "Invalid JSON"),
        ('{"steps": 1e999}', "steps = inf is wrong"),
        ('{"steps": ' + "1" * 5000 + "}", "Invalid JSON"),
        ('{"model": "\\u001b[31m"}', r"model = '\\x1b"),
        (" " * (MAX_CONFIG + 1), "262,144 are the most"),
    ],
    ids=range(8),
)
def test_configurations_of_runs(
    text: str | bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "run/config.json", text)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model.safetensors")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "no configuration of this version" in said and said.isprintable() and len(said) < 1000
    assert re.search(reason, said), said
    assert not (tmp_path / "model.safetensors").exists()


def test_defaults_are_within_the_limits() -> None:
    RunConfig.model_validate(RunConfig().model_dump())
    RunConfig(steps=10**8 - 1, batch_size=2**16, seed=2**64 - 1)


# ---- through the commands ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "name", "content"),
    [
        ("coco", "c.json", DEEP),
        ("boxes", "b.jsonl", DEEP),
        ("boxes", "b.jsonl", TERMINAL),
        ("openimages", "t.csv", b"\xff"),
        ("voc", "xml/a.xml", "<a>" * 1000),
        ("yolo", "labels/a.txt", TERMINAL),
        ("openimages", "texts/a\n\x1b.txt", "0 0"),
    ],
)
def test_prepare_says_one_sentence(
    form: str,
    name: str,
    content: str | bytes,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = put(tmp_path / name, content)
    annotations = path.parent if "/" in name else path
    words = ["--images", str(images), "--annotations", str(annotations)]
    words += ["--out", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare", form, *words]) == 2
    *_, said = capsys.readouterr().err.strip().split("\n")
    said = said.split("\r")[-1]
    assert said.startswith("pbe-train: ") and said.isprintable() and len(said) < 1000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "plan"])
def test_train_and_plan_say_one_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "run.toml", "a." * 5000)
    assert main([command, str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "32 dots" in said and list(tmp_path.iterdir()) == [path]


def test_training_on_what_is_no_index_says_one_sentence(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    put(root / "train/boxes.jsonl", DEEP)
    settings = f'stage = "first_stage"\nmodel = "tiny"\nout = "{tmp_path}/run"\n'
    put(tmp_path / "run.toml", settings + f'data.root = "{root}"\ndata.workers = 0\n')
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert "is no box entry" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()
