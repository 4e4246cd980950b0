"""What the commands of this repository share: how they fail, and how they read arguments.

Exit codes: 0 done, 2 bad input or out of memory (one sentence on stderr), 130 interrupted; others
are a command's own. Whether a message could be printed does not matter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from ..editing.denoise import SEEDS
from ..memory import is_out_of_memory, wanted
from ..untrusted import first_line, printable, shown
from .output import unfailing_output

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_LONGEST = 500  # characters of what argparse says, which repeats arguments
_MORE_MEMORY = "close other programs, or use a machine with more memory"


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raise `ValueError` instead of exiting."""
        raise ValueError(f"{shown(message, _LONGEST)}; see {self.prog} --help")


def run(parser: Parser, argv: Sequence[str] | None, interrupted: str = "interrupted") -> int:
    """Run the command that the arguments name.

    Args:
        parser: Its subcommands come from `add_command`.
        argv: Arguments without the program's name; `None` takes the process's own.
        interrupted: Message after Ctrl-C.

    Returns:
        The exit code, which does not depend on whether messages could be printed.
    """
    remedy = _MORE_MEMORY
    with unfailing_output() as stdout:
        try:
            args = parser.parse_args(argv)
            remedy = args.more_memory
            code = args.run(args)
            stdout.flush()
            if args.is_text and stdout.full is not None:
                raise ValueError(
                    f"could not print all of the output: {stdout.full}; make room for it"
                )
            return code
        except KeyboardInterrupt:
            print(f"{parser.prog}: {interrupted}", file=sys.stderr)
            return 130
        except Exception as error:
            said = sentence(error, remedy)
            if said is None:
                raise
            print(f"{parser.prog}: {said}", file=sys.stderr)
            return 2


def sentence(error: Exception, more_memory: str = _MORE_MEMORY) -> str | None:
    """What is wrong and what to do about it, on one printable line; None of a defect of ours.

    Args:
        error: What a command raised.
        more_memory: What to do where memory ran out.
    """
    if is_out_of_memory(error):
        amount = wanted(error)
        return f"out of memory{f' ({amount} more were needed)' if amount else ''}; {more_memory}"
    if isinstance(error, ValueError):
        return printable(error)
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; make it simpler"
    if isinstance(error, OSError):  # without a better sentence where it arose
        where = f" {shown(error.filename)}" if error.filename else ""
        return f"cannot use{where}: {first_line(error)}; check the path"
    return None


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *,
    more_memory: str = _MORE_MEMORY,
    is_text: bool = False,
) -> argparse.ArgumentParser:
    """Add a subcommand.

    Args:
        commands: From `add_subparsers`.
        name: Its name.
        run: Returns the exit code.
        summary: What it does, for `--help`.
        more_memory: What to do where memory runs out.
        is_text: What it prints is its result, so that it fails where there is no room for it.
    """
    command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    command.set_defaults(run=run, more_memory=more_memory, is_text=is_text)
    return command


def positive(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def seed(text: str) -> int:
    """Argument type: a seed."""
    number = int(text)
    if not 0 <= number < SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {SEEDS - 1}")
    return number


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
