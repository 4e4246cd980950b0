"""The parts as processes of their own, each with a limit of time.

All processes start at once, import what they need and wait to be told to go on, one after another:
importing takes longer than some parts measure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu.report import Report

LOG = "log.txt"
_ENDING = 0.1  # share of a part's time in which it begins nothing new
_TAIL = 3000  # characters of the log


@dataclass(frozen=True)
class Part:
    """A part of the command.

    Attributes:
        module: With `run(report, options)`, and `prepare(options)` if there is something to do
            before the card is free.
        share: Of the time, in proportion to those of the other parts.
    """

    module: str
    share: float


def supervise(parts: Mapping[str, Part], command: Sequence[str], out: Path, minutes: float) -> None:
    """Run the parts, one after another; time that one leaves goes to those after it.

    Args:
        parts: In their order.
        command: Starts the process of a part; `--part` and its name are added.
        out: Folder of the results.
        minutes: For all parts together.
    """
    end = time.monotonic() + 60 * minutes
    shares = {name: part.share for name, part in parts.items()}
    with contextlib.ExitStack() as stack:
        waiting = []
        for name in parts:
            log = stack.enter_context(tempfile.TemporaryFile())
            process = _start([*command, "--part", name], log)
            stack.callback(_kill, process)
            waiting.append((name, process, log))
        for name, process, log in waiting:
            left = max(0.0, end - time.monotonic())
            seconds = left * shares[name] / sum(shares.values())
            del shares[name]
            _finish(Report(folder=out, part=name), process, seconds, log)


def _start(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[str]:
    environment = {
        "PYTHONFAULTHANDLER": "1",
        "TQDM_DISABLE": "1",
        **os.environ,
    }
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip


def _finish(report: Report, process: subprocess.Popen[str], seconds: float, log: IO[bytes]) -> None:
    """Let a waiting part go on, and see to its end."""
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and its code says how
            limit = report.began + seconds
            process.stdin.write(f"{limit - _ENDING * seconds} {limit}\n")
            process.stdin.flush()
        code = process.wait(seconds)
        fault = f"ended with code {code}" if code else ""
    except subprocess.TimeoutExpired:
        _kill(process)
        fault = f"stopped at its limit of {seconds:.0f} s"
    log.seek(0)
    said = log.read().decode(errors="replace")
    with open(report.folder / LOG, "a", encoding="utf-8") as file:
        file.write(said)
    if fault:
        last = said.strip().rpartition("\n")[2]
        report.add("the part", "error", detail=f"{said[-_TAIL:]}\n{fault}; last line: {last}")
    else:
        report.value("the part", time.monotonic() - report.began, "s")


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
