"""Hostile files end in a sentence: soon, in little memory, and with nothing run or changed.

Each file goes through every entry that reads its kind (`hostile.entries`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from .hostile import ENTRY_NAMES, KINDS, Case

SECONDS, BYTES = 5, 10**9  # of processor time: other work on the machine does not count
LONGEST = 2_000
"""Letters of a sentence; each thing of a file that it repeats has at most 200."""
ALSO = {
    "tower": "is not an image tower",
    "result": "already exists and is not the result of this edit",
}
"""What an entry says of a file that it has read in full."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak memory"
)


def entries(read_as: str, name: str, case: Case) -> list[str]:
    """Entry points that try a file: one in turn over the files of a kind, unless all are asked for.

    All by all take ten minutes (`make soak`).
    """
    possible = list(case.only or ENTRY_NAMES[read_as])
    if os.environ.get("EVERY_ENTRY"):
        return possible
    return [possible[zlib.crc32(name.encode()) % len(possible)]]


class Runner:
    """The process that reads the files: its memory is not ours, and its death is not either."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pbe_model.hostile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONWARNINGS": "default", "CUDA_VISIBLE_DEVICES": ""},
        )

    @cache  # noqa: B019
    def outcomes(self, kind: str) -> dict[str, dict[str, dict]]:
        """What came of each file of a kind, by the names of files and entries."""
        read_as, table = KINDS[kind]
        place = self.folder / kind
        place.mkdir()
        for name, case in table.items():
            case.make(place / name)
        before = self.listing(place)
        files = [(name, entries(read_as, name, case)) for name, case in table.items()]
        print(json.dumps([read_as, str(place), files]), file=self.process.stdin, flush=True)
        found: dict[str, dict[str, dict]] = {}
        while line := self.process.stdout.readline().strip():
            answer = json.loads(line)
            found.setdefault(answer["file"], {})[answer["entry"]] = answer
        assert self.process.poll() is None, "the process that reads the files has ended"
        assert self.listing(place) - before <= {
            "photo.png",
            "mask.png",
            "exemplar.png",
            "good.safetensors",
        }
        return found

    @staticmethod
    def listing(place: Path) -> set[str]:
        return {str(file.relative_to(place)) for file in place.rglob("*")}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    made = Runner(tmp_path_factory.mktemp("hostile"))
    yield made
    made.process.stdin.close()
    assert made.process.wait(timeout=60) == 0


def problems(case: Case, entry: str, outcome: dict) -> Iterator[str]:
    """What is wrong with what an entry did."""
    if "died" in outcome:
        yield f"died of {outcome['died']}"
        return
    if outcome["trace"]:
        yield outcome["trace"].strip()
    lines = [
        line
        for line in re.split(r"[\r\n]", outcome["err"] + outcome["raised"])
        if line.strip() and not line.startswith("edits:")  # the progress of a batch
    ]
    refused = outcome["code"] in (1, 2) and not outcome["trace"]
    if not refused and not (outcome["code"] == 0 and entry in case.passes):
        yield f"code {outcome['code']}"
    if refused:
        said = "\n".join(lines)
        if len(lines) != 1:
            yield f"{len(lines)} lines: {said[:300]}"
        if not outcome["raised"] and not said.startswith(("pbe: ", "pbe-train: ")):
            yield f"begins with {said[:30]!r}"
        says = "|".join(filter(None, (case.says, ALSO.get(entry))))
        if entry not in case.passes and not re.search(says, said):
            yield f"does not say {case.says!r} but: {said[:300]}"
        if len(said) > LONGEST:
            yield f"says {len(said)} letters"
    elif lines:
        yield f"says {lines[:3]}"
    for text in (*lines, outcome["out"].replace("\n", "")):
        if not text.isprintable():
            yield f"prints {text[:200]!r}"
    if outcome["seconds"] > SECONDS:
        yield f"took {outcome['seconds']:.1f} s"
    if outcome["peak"] > BYTES:
        yield f"took {outcome['peak'] / 1e6:.0f} MB"
    for what in ("written", "started", "polluted"):
        if outcome[what]:
            yield f"{what}: {outcome[what]}"


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, table) in KINDS.items() for name in table]
)
def test_a_hostile_file_ends_in_a_sentence(runner: Runner, kind: str, name: str):
    outcomes = runner.outcomes(kind).get(name)
    assert outcomes, "it was not read"
    case = KINDS[kind][1][name]
    found: dict[str, list[str]] = {}
    for entry, outcome in outcomes.items():
        for problem in problems(case, entry, outcome):
            found.setdefault(problem.replace("pbe-train: ", "").replace("pbe: ", ""), []).append(
                entry
            )
    assert not found, "".join(f"\n{', '.join(at)}: {problem}" for problem, at in found.items())
