"""The loader's processes: batches of samples, endlessly, or one sentence why there are no more."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from typing import Any

import cv2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pbe_model.untrusted import first_line
from training.data.dataset import StatelessBatchSampler, collate
from training.signals import ignore_stop_signals


class NoMoreSamples(ValueError):
    """Photos are gone, or a worker process is dead; one sentence for the user."""


def load_batches(
    dataset: Dataset[dict[str, Any]],
    batch_sampler: StatelessBatchSampler,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Collated batches, endlessly; the number of workers does not change what they hold.

    Args:
        dataset: Samples by number.
        batch_sampler: Which of them.
        num_workers: Processes that make samples; 0 makes them in this one.
        pin_memory: Whether batches lie in memory that a GPU can read.

    Raises:
        NoMoreSamples: A sample cannot be made, or a worker process has died.
    """
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
    )
    loaded = quiet_iterator(loader)
    while True:
        batch = next_batch(loaded)
        if isinstance(batch, _Failure):
            raise NoMoreSamples(batch.reason)
        yield batch


def start_worker(worker: int) -> None:
    """What a worker does first: leave signals and cores to the process that trains."""
    ignore_stop_signals()
    cv2.setNumThreads(0)  # workers share the cores instead of each starting a thread on all of them


def quiet_iterator(loader: DataLoader[Any]) -> Iterator[Any]:
    """Of a loader whose dead workers are found out when their batch is due, and not before.

    torch also watches for their end in a handler of its own, which raises wherever the program just
    is: in the middle of an update, or of a checkpoint.
    """
    _kill_workers_at_exit()
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    made = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return made


@cache
def _kill_workers_at_exit() -> None:
    """See that a program which fails does not wait for its workers.

    Where an error keeps hold of the loader, `multiprocessing` ends them with SIGTERM, which they
    ignore. Its own finalizers come before that, and `atexit`'s only in a program's first process.
    """
    Finalize(None, _kill_workers, exitpriority=0)


def _kill_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def next_batch(loaded: Iterator[Any]) -> Any:
    """The next item of a loader's iterator.

    Raises:
        NoMoreSamples: A worker process has died.
    """
    try:
        return next(loaded)
    except (ConnectionError, EOFError) as error:  # it had handed over what it can no longer send
        reason = first_line(error)
        cause = error
    except RuntimeError as error:
        reason = first_line(error).rstrip(". ")
        if reason.startswith("Caught ") or "worker" not in reason.lower():  # an error of our own
            raise
        cause = error
    raise NoMoreSamples(
        "a process that makes samples has died, perhaps for lack of memory or of space in /dev/shm "
        f"({reason}); lower data.workers"
    ) from cause


@dataclass(frozen=True)
class _Failure:
    """In place of a sample that cannot be made: an exception would arrive with its traceback."""

    reason: str


class _Guarded(Dataset[Any]):
    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> dict[str, Any] | _Failure:
        try:
            return self.dataset[number]
        except ValueError as error:  # what a sample says that cannot be made
            return _Failure(str(error))


def _collate(samples: list[Any]) -> dict[str, Tensor] | _Failure:
    failed = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    return failed or collate(samples)
