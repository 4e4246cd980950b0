"""What the part `bundled` brings home of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.bundled import publish
from training.loop import train

from ..training.runs import run_config, write_photos


@pytest.mark.parametrize("averages", [{}, {"ema.decay": 0.5}], ids=["none", "averaged"])
def test_a_run_comes_home_with_averages_or_without(tmp_path: Path, averages: dict) -> None:
    run = run_config(write_photos(tmp_path / "photos"), tmp_path / "run", **averages)
    (out := tmp_path / "out").mkdir()
    assert publish(run.out, out) is None
    train(run)
    exported = publish(run.out, out)
    assert exported is not None
    averaged, last = (
        b"".join(path.read_bytes() for path in sorted(out.glob(f"{name}.safetensors.*")))
        for name in ("model", "raw")
    )
    assert averaged == exported.read_bytes()
    assert (averaged != last) == bool(averages)
