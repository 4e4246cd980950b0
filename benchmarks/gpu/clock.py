"""Times and memory of things that run on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Job = Callable[[], Any]


def interleaved(
    jobs: Mapping[str, Job], device: torch.device, *, seconds: float, least: int = 3
) -> dict[str, float]:
    """Median milliseconds of each job, run in turn so that what disturbs one disturbs all.

    Args:
        jobs: Warm: each has run before.
        device: That they run on.
        seconds: To spend on all of them together.
        least: Rounds that are made whatever the time.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < least or time.monotonic() < end:
        for name, job in jobs.items():
            times[name].append(milliseconds(job, device))
        rounds += 1
    return {name: statistics.median(found) for name, found in times.items()}


def milliseconds(job: Job, device: torch.device) -> float:
    """Time of one run: on a card between two events, else by the clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        job()
        return 1000 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    job()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def peak_gib(job: Job, device: torch.device) -> float:
    """Most GiB of the card that a run takes beside what is there before; 0 without a card."""
    if device.type != "cuda":
        job()
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    job()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a large matrix product, on random numbers: zeros run faster than real ones."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    # Several to an event, or a launch would count.
    count = 5

    def job() -> None:
        for _ in range(count):
            torch.mm(a, b)

    fastest = min(milliseconds(job, device) for _ in range(4))
    return 2 * side**3 * count / (fastest / 1000)


def captured(job: Job) -> Job:
    """The job as a CUDA graph: what it launches is recorded once and then replayed as a whole.

    The result is the same tensor at every replay.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels before the capture
        for _ in range(3):
            job()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = job()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
