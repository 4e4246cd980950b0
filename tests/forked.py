"""Programs of ours as processes that have imported already what takes them five seconds.

They come from a server that has imported it and has done nothing else, so that they are what a
program is after its imports: their memory, threads and signals are their own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SECONDS = 600
_SERVED = "forkserver" in multiprocessing.get_all_start_methods()
_FORKS = multiprocessing.get_context("forkserver" if _SERVED else "spawn")
_FORKS.set_forkserver_preload(
    [
        "pbe_model.cli.main",
        "training.cli",
        "training.loop",
        "torch._dynamo",
        "transformers.models.clip.modeling_clip",
    ]
)


def begin(
    function: Callable[..., int | None],
    *arguments: Any,
    environment: dict[str, str] | None = None,
    outputs: tuple[Path, Path] = (Path(os.devnull), Path(os.devnull)),
) -> BaseProcess:
    """Start a function in a process of its own.

    Args:
        function: Of a module; what it returns is the exit code.
        arguments: For it.
        environment: Variables to add.
        outputs: Files for its standard output and error.
    """
    process = _FORKS.Process(target=_run, args=(function, arguments, environment or {}, outputs))
    process.start()
    return process


def run(
    function: Callable[..., int | None],
    *arguments: Any,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a function in a process of its own to its end; see `begin`."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        process = begin(function, *arguments, environment=environment, outputs=outputs)
        process.join(timeout=SECONDS)
        assert process.exitcode is not None, f"{function}{arguments} does not end"
        out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess([*arguments], process.exitcode, out, err)


def heed_signals() -> None:
    """Undo what a shell leaves to what it runs in the background, or under nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _run(
    function: Callable[..., int | None],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    outputs: tuple[Path, Path],
) -> None:
    """As the first process of a session, which tests may signal as a group."""
    if hasattr(os, "setsid"):
        os.setsid()
    heed_signals()
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # for its own: this one has the server's
    sys.exit(function(*arguments))
