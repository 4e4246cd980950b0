"""The `pbe-train` command: exit codes, sentences, and what reaches the functions."""

from __future__ import annotations

from pathlib import Path

import pytest

import training.loop
from training.cli import main

from .runs import newest, run_config, to_toml


def test_train_export_and_overrides(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(photos, tmp_path / "run")
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "run.toml"), "--steps", "2", "--optim.lr", "1e-4"]) == 0
    assert newest(config.out)["step"] == 2
    capsys.readouterr()
    out = tmp_path / "first.safetensors"
    assert main(["export", str(config.out), str(out), "--dtype", "fp16"]) == 0
    assert out.is_file() and "after 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "nothing"], "no configuration 'nothing'"),
        (["train"], "config"),
        (["paint"], "invalid choice: 'paint'"),
        (["export", "{tmp}/none", "{tmp}/model.safetensors"], "none is no training run"),
        (["export", "{tmp}", "{tmp}/none/model.safetensors"], "there is no folder"),
        (
            ["evaluate", "demo", "--data", "{tmp}", "--checkpoint", "{tmp}/none.ckpt"],
            "no checkpoint",
        ),
        (["evaluate", "demo", "--data", "{tmp}", "--pairs", "0"], "0 is less than 1"),
        (["evaluate", "demo", "--data", "{tmp}", "--split", "seen"], "seen/pairs.jsonl"),
        (["evaluate", "demo", "--data", "{tmp}", "--device", "cuda:99"], "'cuda:99'"),
        (["prepare", "demo", "--out", "{tmp}", "--count", "x"], "--count"),
        (["prepare", "other", "--out", "{tmp}"], "invalid choice: 'other'"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(tmp=tmp_path) for word in words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pbe-train: ") and printed.err.count("\n") == 1
    assert sentence in printed.err
    assert list(tmp_path.iterdir()) == []


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.loop, "Trainer", interrupted)
    assert main(["train", "demo"]) == 130
    assert capsys.readouterr().err == (
        "pbe-train: interrupted; the same command resumes from there\n"
    )


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "prepare"),
        (["train", "--help"], "overrides"),
        (["train", "demo", "--help"], "--optim.lr"),
    ],
)
def test_help(words: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert shown in capsys.readouterr().out


def test_evaluation_prints_the_table_and_writes_pictures(
    pairs: Path,
    tmp_path: Path,
    small_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", "demo", "--data", str(pairs), "--checkpoint", str(small_checkpoint)]
    assert main([*words, "--pairs", "9", "--steps", "1", "--out", str(tmp_path / "out")]) == 0
    assert "similarity 3" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"evaluation.json", "evaluation.png"}
