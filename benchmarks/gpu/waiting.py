"""The side of a part in its process: prepare, say so, wait for the word to go on, run."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from io import FileIO


def when_told(prepare: Callable[[], None], run: Callable[[float], None]) -> None:
    """Run a part and end the process.

    Args:
        prepare: What it does before its turn.
        run: Takes the seconds after which it should begin nothing new.
    """
    # Standard input and output lead to the other process; what the part prints goes to the log.
    words, prepared = FileIO(os.dup(0)), os.dup(1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(words, told), daemon=True).start()
    prepare()
    os.write(prepared, b"prepared\n")
    os.close(prepared)
    end = told.get()
    if end:  # else the other process is gone
        run(float(end) - time.monotonic())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking a process with CUDA and compilers down in order takes seconds


def _listen(words: FileIO, told: queue.SimpleQueue[bytes]) -> None:
    """Hand on the first line; at a second one, write where every thread is.

    `faulthandler` would do so too, but reads stacks while they change, which may crash it.
    """
    told.put(words.readline())
    if not words.readline():
        return
    main = threading.main_thread().ident
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    for thread in sorted(frames, key=lambda thread: thread == main):  # what matters comes last
        stack = "".join(traceback.format_stack(frames[thread]))
        print(f"\nthread {thread}, most recent call last:\n{stack}", file=sys.stderr, flush=True)
