"""`pbe-train`: code 2 means that nothing was written, and a seed is any number of 64 bits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from training.cli import main
from training.config import RunConfig, load_config, to_toml
from training.data.dataset import Stream, keyed_rng, shuffled
from training.loop import train

from ..limits import largest_file
from .runs import run_config

LAST = 2**64 - 1


@pytest.fixture(scope="module")
def run(photos: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the largest seed there is."""
    folder = tmp_path_factory.mktemp("finished")
    train(run_config(photos, folder / "run", small_checkpoint, steps=2, seed=LAST))
    return folder / "run"


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("room", [0, 600, 100_000])
@pytest.mark.parametrize("layout", ["safetensors", "official"])
def test_an_export_onto_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, layout: str, room: int
) -> None:
    before = everything(run)
    out = tmp_path / ("new.safetensors" if layout == "safetensors" else "new.ckpt")
    with largest_file(room):
        assert main(["export", str(run), str(out), "--to", layout]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"pbe-train: cannot write {out}: File too large")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [] and everything(run) == before


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["export", "RUN", "none/a.safetensors"], "there is no folder"),
        (["export", "RUN", "a" * 300 + ".safetensors"], "too long"),
        (["export", "RUN", "folder.safetensors"], "it is a folder"),
        (["export", "none", "a.safetensors"], "no training run"),
        (["export", "RUN", "a.safetensors", "--step", "99"], "no checkpoint of step 99"),
        (["evaluate", "demo", "--data", "none", "--out", "a/b"], "none"),
        (["evaluate", "demo", "--data", "none", "--out", "file/b"], "file"),
        (["evaluate", "demo", "--data", ".", "--out", "a/b", "--seed", "-1"], "not from 0 to"),
        (["evaluate", "demo", "--data", ".", "--out", "a", "--checkpoint", "file"], "file"),
        (["prepare", "demo", "--out", "a", "--seed", str(2**64)], "not from 0 to"),
        (["prepare", "demo", "--out", "a", "--pack", "none/a.tar"], "there is no folder"),
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["plan", "nowhere.toml"], "nowhere.toml"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_nothing_was_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    argv: list[str], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.safetensors").mkdir()
    before = everything(tmp_path)
    assert main([str(run) if word == "RUN" else word for word in argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and sentence in said.err
    assert everything(tmp_path) == before


def test_every_seed_is_one_of_its_own() -> None:
    """NumPy makes floats of Python's integers where one of them has 64 bits."""
    seeds = (0, 1, 2**32, 2**63 - 1, 2**63, 2**63 + 1, LAST - 1, LAST)
    drawn = {int(keyed_rng(s, 7, Stream.NOISE).integers(2**63)) for s in seeds}
    assert len(drawn) == len(seeds)
    assert len({tuple(shuffled(i, s, 0, 50) for i in range(50)) for s in seeds}) == len(seeds)
    # Those that were there before draw what they drew.
    old = np.random.Generator(np.random.Philox(key=[5, 7], counter=[0, 0, 0, Stream.NOISE]))
    assert keyed_rng(5, 7, Stream.NOISE).random() == old.random()


def test_a_configuration_takes_every_seed(run: Path) -> None:
    assert load_config("demo", ["--seed", str(LAST)]).seed == LAST
    assert RunConfig.model_validate_json((run / "config.json").read_bytes()).seed == LAST
    for wrong in (-1, LAST + 1):
        with pytest.raises(ValueError, match="seed"):
            RunConfig(seed=wrong)


def test_a_run_whose_messages_nobody_reads_is_the_same_run(
    photos: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the terminal of a run is closed."""
    config = run_config(photos, tmp_path / "run", small_checkpoint, steps=1)
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", nobody)
        patch.setattr("sys.stderr", nobody)
        assert main(["train", str(tmp_path / "run.toml")]) == 0
    assert list((tmp_path / "run" / "checkpoints").iterdir())
