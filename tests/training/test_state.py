"""Checkpoints of a run: whole or not there, the newest kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import state


def test_the_newest_are_kept_and_loaded(tmp_path: Path) -> None:
    assert state.load_newest(tmp_path / "none") is None
    for step in (5, 10, 15):
        state.save(tmp_path, step, {"module": {"w": torch.full((2,), step)}}, keep=2)
    assert [p.name for p in state.checkpoints(tmp_path)] == ["step-00000010.pt", "step-00000015.pt"]
    saved = state.load_newest(tmp_path)
    assert saved is not None and saved["step"] == 15
    assert saved["module"]["w"].tolist() == [15, 15]


def test_saving_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    state.save(tmp_path, 1, {"module": {}}, keep=1)
    with pytest.raises(Exception, match="pickle"):
        state.save(tmp_path, 2, {"module": lambda: None}, keep=1)
    saved = state.load_newest(tmp_path)
    assert saved is not None and saved["step"] == 1


def test_half_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    """What a process killed while writing leaves."""
    whole = state.save(tmp_path, 1, {"module": {}}, keep=1)
    (tmp_path / "step-00000002.part").write_bytes(whole.read_bytes()[:100])
    assert state.checkpoints(tmp_path) == [whole]
    assert state.save(tmp_path, 2, {"module": {}}, keep=1).is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002.pt"]
