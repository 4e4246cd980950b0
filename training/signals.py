"""Signals that ask a run to end: it makes the update it is at, saves, and ends with 128 + number.

A scheduler, a terminal and torchrun send them to every process of a job, the loader's workers
included. So those ignore them (`training.data.loader`) and go when the process that trains does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ASKING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
"""A preempted job, Ctrl-C, a terminal that is closed (which Windows does not tell)."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the numbers of signals instead of dying of them; a second Ctrl-C interrupts."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def catch(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt
        caught.append(number)

    # What is ignored stays so: `nohup` starts a program that is to outlive its terminal.
    heeded = [number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, catch) for number in heeded}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """What a worker process does with them."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
