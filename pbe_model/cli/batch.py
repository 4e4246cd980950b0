"""Many edits from a file of JSON lines: resumable after any end, spread over processes.

The results themselves are the record of what is done: each PNG appears whole, with a note that
names its edit. There is no other state, so nothing is done twice or lost, however a run ended and
however many processes continue it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..atomic import check_writable
from ..image_io import read_note
from ..model import PaintByExample
from ..untrusted import first_line, numbered_lines, parse_json, printable, shown
from .common import Parser, sentence
from .edit_options import (
    DEFAULTS,
    FILES,
    NUMBERS,
    SWITCHES,
    WHOLE,
    add_files,
    add_painting,
    check_numbers,
    given_options,
    numbered,
    paint,
    read_pictures,
    write_results,
)

_MAX_BYTES = 16 * 2**20  # largest file of edits
_LONGEST_NAME = 200  # bytes; systems allow 255, some of them for numbers and temporary names
_SPECIAL = set('/\\:*?"<>|')  # in names, on one system or another
_KNOWN = (*FILES, "out", "preset", *DEFAULTS)
_OF_THE_RUN = ("checkpoint", "lora", "device", "dtype", "attention")
_LONG = timedelta(days=30)  # how long a process may wait for the others at the end
_IN_LOGS = 30  # seconds between lines of progress where there is no terminal


@dataclass(frozen=True)
class Edit:
    """A valid line.

    Attributes:
        line: Its number, from 1.
        out: File of the result; of several, with a number before the suffix.
        files: What `edit_options.read_pictures` reads.
        options: What `edit_options.paint` takes; those left out have their defaults.
        note: Text stored in the results, which names files, options and model.
    """

    line: int
    out: Path
    files: argparse.Namespace
    options: dict[str, Any]
    note: str

    @property
    def results(self) -> list[Path]:
        """The files that the edit makes."""
        return numbered(self.out, self.options.get("num_images", 1))

    def is_done(self) -> bool:
        """Whether all results are there.

        Raises:
            ValueError: One of them belongs to another edit.
        """
        there = [path for path in self.results if path.exists()]
        for path in there:
            if read_note(path) != self.note:
                raise ValueError(
                    f"{path} already exists and is not the result of this edit with these options; "
                    "remove it, or choose another --out"
                )
        return len(there) == len(self.results)


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is, as torchrun tells in the environment."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Processes:
        """Alone unless started by torchrun."""
        rank, count, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        return cls(rank, count, local)

    def total(self, *counts: int) -> list[int]:
        """Sums over all processes; waits for them, as torchrun stops those that are left behind
        by one that fails."""
        if self.count == 1:
            return list(counts)
        dist.init_process_group("gloo", timeout=_LONG)
        summed = torch.tensor(counts)
        dist.all_reduce(summed)
        dist.destroy_process_group()
        return summed.tolist()


@dataclass(frozen=True)
class Done:
    """What became of the edits, over all processes."""

    painted: int
    kept: int
    failed: int


def read_edits(
    path: Path, out: Path, options: dict[str, Any], model: dict[str, Any]
) -> tuple[list[Edit], dict[int, str]]:
    """The edits of a file.

    Args:
        path: A JSON object a line: the options of `pbe edit` by name, files relative to `path`.
        out: Folder for the results; may not exist yet.
        options: Defaults for lines that leave an option out, as `edit_options.paint` takes them.
        model: Names of checkpoint and adapters, for the note.

    Returns:
        The edits, and what is wrong with the invalid lines, by their numbers.

    Raises:
        ValueError: No such file, an empty one, or results cannot be written to `out`.
    """
    check_writable(out, folder=True)
    edits: list[Edit] = []
    problems: dict[int, str] = {}
    owners: dict[str, int] = {}
    parser = _line_parser()
    for number, text in numbered_lines(path, _MAX_BYTES):
        try:
            one = _parse(parser, text, number, path.parent, out, options, model)
            for result in one.results:
                # Some systems take names for the same that differ in case, or in how they spell ö.
                name = unicodedata.normalize("NFC", result.name).casefold()
                if owners.setdefault(name, number) != number:
                    raise ValueError(
                        f"{result} is already the result of line {owners[name]}; give another out"
                    )
            edits.append(one)
        except ValueError as error:
            problems[number] = str(error)
    if not edits and not problems:
        raise ValueError(f"{path} is empty; give a JSON object a line, the options of pbe edit")
    return edits, problems


def _line_parser() -> Parser:
    """A line is parsed as the arguments of `pbe edit` are: same names, checks and sentences."""
    parser = Parser(prog="pbe edit", allow_abbrev=False, add_help=False)
    add_files(parser)
    add_painting(parser)
    parser.add_argument("--out")
    return parser


def _parse(
    parser: Parser,
    text: str,
    number: int,
    folder: Path,
    out: Path,
    options: dict[str, Any],
    model: dict[str, Any],
) -> Edit:
    try:
        values = parse_json(text, _unique)
    except ValueError as error:
        raise ValueError(
            f"not valid JSON ({error}); give an object with the options of pbe edit"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{shown(text, 40)} is not a JSON object; give the options of pbe edit by name"
        )
    values = _unique([(name.replace("-", "_"), value) for name, value in values.items()])
    args = parser.parse_args([_argument(name, value) for name, value in values.items()])
    for name in FILES:
        if getattr(args, name) is not None:
            setattr(args, name, str(folder / getattr(args, name)))
    name = args.out or f"{number:05d}.png"
    if not _is_plain(name):
        raise ValueError(f"out is {shown(repr(name))}; give a plain, short name that ends in .png")
    merged = options | given_options(args)
    check_numbers(merged)
    if merged.get("region") == "each" and merged.get("paste_back") is False:
        raise ValueError(
            "region each without paste-back makes a picture for each hole, and their number is not "
            "known in advance; leave paste-back on, or use pbe edit"
        )
    note = {name: values[name] for name in FILES if name in values}
    note |= {**model, **merged}
    return Edit(number, out / name, args, merged, json.dumps(note, sort_keys=True))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, if it has no name twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{shown(twice)}' is given twice")
    return values


def _is_plain(name: str) -> bool:
    """Whether a name is one of a file in any folder, on any system."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:  # half of a character
        return False
    return (
        name.endswith(".png")
        and length <= _LONGEST_NAME
        and name.isprintable()
        and not _SPECIAL.intersection(name)
    )


def _argument(name: str, value: Any) -> str:
    """An option and its value, as on the command line."""
    flag = f"--{name.replace('_', '-')}"
    if name not in _KNOWN:
        if name in _OF_THE_RUN:
            raise ValueError(f"'{name}' is the same for all lines; give {flag} to pbe batch")
        near = get_close_matches(name, _KNOWN, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "pbe edit --help lists the options"
        raise ValueError(f"there is no option '{shown(name)}'; {hint}")
    if name == "guidance_interval" and isinstance(value, list) and len(value) == 2:
        value = ",".join(map(json.dumps, value))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in SWITCHES:
        wanted, fits = "true or false", isinstance(value, bool)
    elif name in WHOLE | NUMBERS:
        wanted, fits = "a number", is_number or isinstance(value, str)
    else:
        wanted, fits = "a string", isinstance(value, str)
    if not fits:
        raise ValueError(f"{shown(name)} is {shown(json.dumps(value))}; give {wanted}")
    if name in SWITCHES:
        return flag if value else f"--no-{flag[2:]}"
    if name in WHOLE and isinstance(value, float) and value.is_integer():
        value = int(value)  # as tools write columns of numbers of which some are missing
    return f"{flag}={value}"


def run(
    edits: Sequence[Edit],
    load: Callable[[], PaintByExample],
    processes: Processes | None = None,
    *,
    more_memory: str,
) -> Done:
    """Paint this process's share of the edits; those whose results are there are left alone.

    An edit that fails is reported on stderr and does not stop the rest. The folder for the results
    is made once the model is there.

    Args:
        edits: All of them, in every process.
        load: Loads the model; called only if there is something to paint.
        processes: Which share of the edits is this process's; `None` for all of them.
        more_memory: What to do where an edit takes too much memory.
    """
    processes = processes or Processes()
    todo: list[Edit] = []
    painted = kept = failed = 0
    # Shared by number alone: which results exist changes while other processes work.
    for one in edits[processes.rank :: processes.count]:
        try:
            if one.is_done():
                kept += 1
            else:
                todo.append(one)
        except (ValueError, OSError) as error:
            failed += 1
            report(one.line, sentence(error) or "")
    model = load() if todo else None
    bar = tqdm(
        total=kept + len(todo),
        initial=kept,
        desc="edits",
        unit="edit",
        disable=processes.rank > 0,
        mininterval=0.1 if sys.stderr.isatty() else _IN_LOGS,
    )
    with bar:
        for one in todo:
            assert model is not None
            try:
                one.out.parent.mkdir(exist_ok=True)
                pictures = read_pictures(one.files)
                if pictures.remark is not None:
                    report(one.line, pictures.remark)
                result = paint(model, pictures, one.options)
                for path in write_results(one.out, result.images, note=one.note):
                    tqdm.write(printable(path))
                painted += 1
            # A failure of one edit, such as a photo too large for memory: the next may succeed.
            except (ValueError, RuntimeError, MemoryError, ArithmeticError, OSError) as error:
                failed += 1
                report(one.line, sentence(error, more_memory) or first_line(error))
            bar.update()
    return Done(*processes.total(painted, kept, failed))


def report(line: int, problem: str) -> None:
    """Say on stderr what is wrong with a line, above the progress."""
    tqdm.write(f"pbe: line {line}: {printable(problem)}", file=sys.stderr)
