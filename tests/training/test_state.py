"""Checkpoints of a run: whole or not there, the newest kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training import checkpoints as state

from ..limits import largest_file


def names(folder: Path) -> list[int]:
    return [state.step_of(path) for path in state.checkpoints(folder)]


def test_the_newest_are_kept_and_loaded(tmp_path: Path) -> None:
    assert state.load_newest(tmp_path / "none") is None
    for step in (5, 10, 15):
        state.save(tmp_path, step, {"module": {"w": torch.full((2,), step)}}, keep=2)
    assert names(tmp_path) == [10, 15]
    saved = state.load_newest(tmp_path)
    assert saved is not None and saved["step"] == 15
    assert saved["module"]["w"].tolist() == [15, 15]


def test_milestones_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        state.save(tmp_path, step, {}, keep=1, keep_every=10)
    assert names(tmp_path) == [10, 20, 25]


def test_saving_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    state.save(tmp_path, 1, {"module": {}}, keep=1)
    with pytest.raises(Exception, match="pickle"):
        state.save(tmp_path, 2, {"module": lambda: None}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_a_disk_that_is_full_leaves_the_old_one(tmp_path: Path) -> None:
    """Here the system refuses files beyond a size, at the same place as it would for space."""
    state.save(tmp_path, 1, {"module": {"w": torch.ones(10)}}, keep=1)
    with largest_file(100_000), pytest.raises(OSError):
        state.save(tmp_path, 2, {"module": {"w": torch.ones(100_000)}}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    saved = state.load_newest(tmp_path)
    assert saved is not None and saved["module"]["w"].sum() == 10


def test_half_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    """What a process killed while writing leaves."""
    whole = state.save(tmp_path, 1, {"module": {}}, keep=1)
    for step in (2, 7):
        (tmp_path / f"step-0000000{step}.part").write_bytes(whole.read_bytes()[:100])
    assert state.checkpoints(tmp_path) == [whole]
    assert state.save(tmp_path, 2, {"module": {}}, keep=1).is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002.pt"]


@pytest.mark.parametrize("length", [0, 100, 600])
def test_a_damaged_file_is_passed_over_and_named(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = state.save(tmp_path, 1, {"w": torch.ones(1000)}, keep=2)
    (tmp_path / "step-00000002.pt").write_bytes(whole.read_bytes()[:length])
    saved = state.load_newest(tmp_path)
    assert saved is not None and saved["step"] == 1
    assert "step-00000002.pt cannot be read" in caplog.text


def test_only_what_is_trained_is_kept_and_must_fit() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[1].requires_grad_(False)
    kept = state.trainable(module)
    assert sorted(kept) == ["0.bias", "0.weight"]
    kept["0.bias"] = kept["0.bias"] + 1
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    other[1].requires_grad_(False)
    state.load_trainable(other, kept, "run")
    assert torch.equal(other[0].bias, module[0].bias + 1)
    with pytest.raises(ValueError, match=r"run holds other trainable parameters.*0\.weight \(1 "):
        state.load_trainable(other, {**kept, "0.weight": torch.ones(4, 2)}, "run")
    other[1].requires_grad_(True)
    with pytest.raises(ValueError, match=r"such as 1\.bias \(2 in all\)"):
        state.load_trainable(other, kept, "run")


def flip(path: Path, value: bytes) -> None:
    """Changes one bit of the first place that holds these bytes."""
    data = bytearray(path.read_bytes())
    data[data.index(value)] ^= 0x40
    path.write_bytes(data)


def test_a_flipped_bit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a tensor as in the pickle; torch's own reader looks at no checksum."""
    marks = torch.arange(1000, 1064, dtype=torch.int32).numpy().tobytes(), b"module"
    for step, mark in enumerate(marks, start=2):
        state.save(tmp_path, 1, {"module": {"w": torch.arange(1000, 1064).int()}}, keep=9)
        path = state.save(tmp_path, step, {"module": {"w": torch.arange(1000, 1064).int()}}, keep=9)
        flip(path, mark)
        with pytest.raises(ValueError, match=r"has changed since it was written\); delete it"):
            state.load(path)
        saved = state.load_newest(tmp_path)
        assert saved is not None and saved["step"] == 1
        assert f"{path.name} cannot be read" in caplog.text
    flip(tmp_path / "step-00000001.pt", marks[0])
    with pytest.raises(ValueError, match="none of the 3 checkpoints"):
        state.load_newest(tmp_path)


def test_what_is_not_a_run_s_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match=r"it holds list, not the state of a run\); delete it"):
        state.load(path)
    torch.save({"module": nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match=r"it holds .*Linear, not the state of a run"):
        state.load(path)


def test_tensors_that_are_not_mapped_outlive_their_file(tmp_path: Path) -> None:
    path = state.save(tmp_path, 1, {"module": {"w": torch.ones(1000)}}, keep=1)
    loaded = state.load(path)["module"]["w"]
    with path.open("r+b") as file:
        file.truncate(0)
    assert loaded.sum() == 1000
