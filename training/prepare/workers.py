"""A `map` over processes: keeps the order, takes its input as it goes, leaves no orphans."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context, parent_process
from typing import Any

import cv2

_AHEAD = 4  # items in work or waiting to be fetched, a process


@contextmanager
def process_map(
    processes: int, start: Callable[[], None] | None = None, *, preload: str | None = None
) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map(function, items)` over this process or several.

    Results come in the order of the items. Of an endless input only as much is read as is needed.
    If this process is killed, the others end.

    Args:
        processes: 1 works in this process.
        start: Called once in every process before its first item.
        preload: Module that the work needs; where the system can, it is imported once for all
            processes, not once in each.

    Raises:
        ValueError: The system ended one of the processes.
    """
    if processes <= 1:
        if start is not None:
            start()
        yield map
        return
    # Not forked from here: the threads of OpenCV and torch do not survive that.
    has_server = "forkserver" in get_all_start_methods()
    context = get_context("forkserver" if has_server else "spawn")
    if preload is not None and has_server:
        context.set_forkserver_preload([preload])
    with ProcessPoolExecutor(processes, context, _start, (start,)) as pool:

        def bounded_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            waiting = deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield bounded_map
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, for want of memory perhaps; start the same command "
                f"again with fewer --processes than {processes}"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(start: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process answers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # the processes are the parallelism
    if start is not None:
        start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
