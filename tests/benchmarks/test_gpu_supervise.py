"""Parts that hang, crash or fail: each costs its own time, is reported, and the next one runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.report import Row, read_rows
from benchmarks.gpu.supervise import Part, supervise

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys

sys.path[:0] = [{folder!r}, {root!r}]
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.supervise import Part

command.PARTS = {{name: Part(name, 1.0) for name in {names!r}}}
command.main()
"""
FINE = "def run(report, options):\n    report.value('number', 2.0)\n"
FAKES = {
    # In torch's own code, where no handler of a signal would run.
    "hangs": """
import torch

def run(report, options):
    report.value("before", 1.0)
    x = torch.zeros(4000, 4000)
    while True:
        x = x @ x
""",
    "crashes": """
import ctypes

def run(report, options):
    ctypes.string_at(0)
""",
    "raises": """
def run(report, options):
    raise ValueError("a reason")
""",
    "hangs_before": """
import time

def prepare(options):
    time.sleep(100)

def run(report, options):
    pass
""",
    "slow_before": """
import time

def prepare(options):
    time.sleep(2)
"""
    + FINE,
    "leaves_one_running": """
import subprocess

def run(report, options):
    child = subprocess.Popen(["sleep", "1000"])
    report.value("child", child.pid)
""",
    "timed": FINE,
}


def supervised(
    folder: Path, names: list[str], minutes: float, timed: tuple[str, ...] = ()
) -> dict[str, list[Row]]:
    """The rows of each part of a run of these fakes."""
    for name in names:
        (folder / f"{name}.py").write_text(FAKES[name], encoding="utf-8")
    script = folder / "command.py"
    text = COMMAND.format(folder=str(folder), root=str(ROOT), names=names)
    script.write_text(text, encoding="utf-8")
    out = folder / "out"
    out.mkdir()
    command = [sys.executable, str(script), "--device", "cpu", "--out", str(out)]
    parts = {name: Part(name, 1.0, timed=name in timed) for name in names}
    supervise(parts, command, out, minutes)
    rows = read_rows(out)
    return {name: [row for row in rows if row.part == name] for name in names}


def test_a_part_that_hangs_or_fails_is_reported_and_the_next_one_runs(tmp_path: Path) -> None:
    rows = supervised(tmp_path, ["hangs", "crashes", "raises", "slow_before"], 0.6)
    before, hung = rows["hangs"]
    assert before.value == 1
    assert hung.verdict == "error"
    assert "hangs.py" in hung.detail and "in run" in hung.detail
    assert "stopped at its limit of " in hung.detail
    assert "last line: x = x @ x" in hung.detail
    (crashed,) = rows["crashes"]
    assert crashed.verdict == "error" and "ended by SIGSEGV" in crashed.detail
    (raised,) = rows["raises"]
    assert raised.verdict == "error"
    assert "ended with code 1" in raised.detail
    assert "last line: ValueError: a reason" in raised.detail
    number, whole = rows["slow_before"]
    assert number.value == 2 and whole.verdict == "measured"


def test_times_are_measured_once_the_others_have_prepared(tmp_path: Path) -> None:
    rows = supervised(tmp_path, ["timed", "slow_before"], 5.0, timed=("timed",))
    assert [row.name for row in rows["timed"]] == ["number", "the part"]
    begun = int(rows["timed"][1].detail.split()[1])
    assert begun >= 2  # seconds that the other one sleeps


@pytest.mark.long
def test_a_part_that_hangs_before_its_turn(tmp_path: Path) -> None:
    rows = supervised(tmp_path, ["timed", "hangs_before"], 0.15, timed=("timed",))
    late, number, _ = rows["timed"]
    assert (late.name, late.value) == ("still preparing, so times may be too long", "hangs_before")
    assert number.value == 2
    (hung,) = rows["hangs_before"]
    assert "stopped at its limit" in hung.detail and "time.sleep(100)" in hung.detail


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux tells")
def test_what_a_part_has_left_running_is_ended(tmp_path: Path) -> None:
    rows = supervised(tmp_path, ["leaves_one_running"], 0.5)
    child = Path(f"/proc/{rows['leaves_one_running'][0].value}/cmdline")
    until = time.monotonic() + 10
    while child.exists() and child.read_bytes() and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.exists() or not child.read_bytes()  # a zombie has none
