"""What the commands of this repository share: how they fail, and how they read arguments.

Exit codes: 0 done, 2 bad input (one sentence on stderr), 130 interrupted; others are a command's
own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..untrusted import first_line, printable, shown

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise `ValueError` instead of exiting."""
        raise ValueError(f"{message}; see {self.prog} --help")


def run(parser: Parser, argv: Sequence[str] | None, interrupted: str = "interrupted") -> int:
    """Run the command that the arguments name.

    Args:
        parser: Its subcommands come from `add_command`.
        argv: Arguments without the program's name; `None` takes the process's own.
        interrupted: Message after Ctrl-C.

    Returns:
        The exit code.
    """
    try:
        args = parser.parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except ValueError as error:
        print(f"{parser.prog}: {printable(error)}", file=sys.stderr)
        return 2
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else "memory"
        print(f"{parser.prog}: out of memory ({reason}); process less at once", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"{parser.prog}: {interrupted}", file=sys.stderr)
        return 130
    except RecursionError:
        print(f"{parser.prog}: the input is nested too deeply; make it simpler", file=sys.stderr)
        return 2
    except OSError as error:  # without a better sentence where it arose, such as too long a name
        where = f" {shown(error.filename)}" if error.filename else ""
        reason = first_line(error)
        print(f"{parser.prog}: cannot use{where}: {reason}; check the path", file=sys.stderr)
        return 2


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    """Add a subcommand to the result of `add_subparsers`; `run` returns the exit code."""
    command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    command.set_defaults(run=run)
    return command


def positive(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def check_parent(path: Path) -> None:
    """Raise `ValueError` where there is no folder to write `path` into."""
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it")


def usable_device(name: str | None) -> torch.device:
    """The device of a name, after a small computation on it; `None` takes the best there is.

    Raises:
        ValueError: Unknown, or not available on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # how torch says "unknown" and "not built in"
        raise ValueError(
            f"device {name!r} cannot be used here; use cpu"
            + (", or cuda" if torch.cuda.is_available() else "")
        ) from error
    return device
