"""The parts as processes of their own, each with a limit of time.

All processes start at once, import what they need, prepare, and wait to be told to go on, one
after another: importing takes longer than some parts measure. A part that measures times goes on
once the others have prepared, because what they do on the processor would be in its times.
"""

from __future__ import annotations

import contextlib
import os
import select
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
_EXPLAINING = 1.0  # seconds that a process has to say where it is
_ENDING = 0.1  # share of a part's time in which it begins nothing new
_PREPARING = 60.0  # most seconds that a part waits for itself and others to prepare
_TAIL = 3000  # characters of the log


@dataclass(frozen=True)
class Part:
    """A part of the command.

    Attributes:
        module: With `run(report, options)`, and `prepare(options)` if there is something to do
            before the card is free.
        share: Of the time, in proportion to those of the other parts.
        timed: Whether it measures times.
    """

    module: str
    share: float
    timed: bool = False


@dataclass(frozen=True)
class _Waiting:
    """A process that prepares its part and then waits; it writes a line between the two."""

    part: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def prepared(self, until: float) -> bool:
        """Whether it has prepared, or has ended, by a time of the monotonic clock."""
        assert self.process.stdout is not None
        seconds = max(0.0, until - time.monotonic())
        return bool(select.select([self.process.stdout], [], [], seconds)[0])


def supervise(parts: Mapping[str, Part], command: Sequence[str], out: Path, minutes: float) -> None:
    """Run the parts, one after another; time that one leaves goes to those after it.

    Args:
        parts: In their order.
        command: Starts the process of a part; `--part` and its name are added.
        out: Folder of the results.
        minutes: For all parts together.
    """
    began = time.monotonic()
    shares = {name: part.share for name, part in parts.items()}

    def seconds_of(name: str) -> float:
        left = max(0.0, began + 60 * minutes - time.monotonic())
        return left * shares[name] / sum(shares.values())

    with contextlib.ExitStack() as stack:
        waiting = []
        for name in parts:
            log = stack.enter_context(tempfile.TemporaryFile())
            process = _start([*command, "--part", name], log)
            stack.callback(_kill, process)
            waiting.append(_Waiting(name, process, log))
        for place, one in enumerate(waiting):
            report = Report(folder=out, part=one.part)
            until = time.monotonic() + min(_PREPARING, seconds_of(one.part) / 2)
            one.prepared(until)
            others = waiting[place + 1 :] if parts[one.part].timed else []
            late = [other.part for other in others if not other.prepared(until)]
            if late:
                report.value("still preparing, so times may be too long", ", ".join(late))
            after = f"begun {time.monotonic() - began:.0f} s after the command"
            _finish(report, one, seconds_of(one.part), after)
            del shares[one.part]


def _start(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        "PYTHONFAULTHANDLER": "1",
        "TQDM_DISABLE": "1",
        "OMP_WAIT_POLICY": "passive",  # threads that wait leave the cores to the other parts
        **os.environ,
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=log, env=environment, start_new_session=True
    )


def _finish(report: Report, waiting: _Waiting, seconds: float, after: str) -> None:
    """Let a waiting part go on, and see to its end."""
    began, process = time.monotonic(), waiting.process
    limit = began + seconds
    _tell(process, f"{limit - _ENDING * seconds}")
    fault = _fault(process, seconds)
    _kill(process)  # what it has left running would be in the times of the next
    waiting.log.seek(0)
    said = waiting.log.read().decode(errors="replace")
    with open(report.folder / LOG, "a", encoding="utf-8") as file:
        file.write(said)
    if fault:
        last = said.strip().rpartition("\n")[2].strip()
        detail = f"{said[-_TAIL:]}\n{fault}, {after}; last line: {last}"
        report.add("the part", "error", detail=detail)
    else:
        report.value("the part", time.monotonic() - began, "s", after)


def _fault(process: subprocess.Popen[bytes], seconds: float) -> str:
    """What a part ended with, if not well. Shortly before its limit it is asked where it is."""
    try:
        code = process.wait(max(0.0, seconds - _EXPLAINING))
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with code {code}" if code else ""
    except subprocess.TimeoutExpired:
        _tell(process, "where are you")
    try:
        if process.wait(_EXPLAINING) == 0:
            return ""
    except subprocess.TimeoutExpired:
        pass
    return f"stopped at its limit of {seconds:.0f} s"


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its code says how
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
