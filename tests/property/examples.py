"""How many examples a property is tried with, and what holds whatever the example.

`make test` tries a few, the same every time. `make soak` sets TIMES and tries that many times as
many, new ones every time; what fails is kept in `soak_out/examples` and tried first the next time.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

torch.set_printoptions(threshold=8, edgeitems=1)  # examples that fail are printed

TIMES = int(os.environ.get("TIMES", "1"))
"""Times as many examples as in `make test`."""

LONGEST = 2_000
"""Letters of a sentence."""

_CPU_SECONDS, _SECONDS, _BYTES = 20, 300, 10**9
"""That one small input may take: of the processor, on the clock (it may be busy), of memory."""


def examples(count: int) -> Callable:
    """The decorator of a property: `count` examples in `make test`."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None if TIMES == 1 else DirectoryBasedExampleDatabase("soak_out/examples"),
        deadline=None,  # others may be using the processor
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def refusal(error: BaseException) -> str:
    """The sentence of an error: one printable line that says something."""
    said = str(error)
    assert said and said.isprintable() and len(said) <= LONGEST, repr(said[:LONGEST])
    return said


@contextmanager
def bounded() -> Iterator[None]:
    """What happens inside takes neither long nor much memory; a hang ends the process."""
    used, held = time.process_time(), _peak_memory(forget=True)
    faulthandler.dump_traceback_later(_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert time.process_time() - used < _CPU_SECONDS
    assert _peak_memory() - held < _BYTES


def _peak_memory(*, forget: bool = False) -> int:
    """Bytes that this process has had at most since they were forgotten; 0 where none tells."""
    process = Path("/proc/self")
    if not (process / "clear_refs").exists():
        return 0
    if forget:
        (process / "clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s*(\d+) kB", (process / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024
