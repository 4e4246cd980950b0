"""Results as they come: rows in `results.json`, and the same as tables in `table.md`.

Both are written anew after every row, atomically, so that whatever ends a part, even the end of the
machine, what was measured before is there.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

RESULTS, TABLE = "results.json", "table.md"
Verdict = Literal["measured", "passed", "FAILED", "skipped", "error"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One result.

    Attributes:
        part: Of the command.
        name: What was measured.
        verdict: `"measured"` where nothing is demanded of the value.
        value: Number or words; `None` where nothing was measured.
        unit: Of the value.
        limit: The most that a check allows.
        detail: More words, or the traceback of an error.
        at: Seconds since the part began.
    """

    part: str
    name: str
    verdict: Verdict
    value: float | str | None = None
    unit: str = ""
    limit: float | None = None
    detail: str = ""
    at: float = 0.0


@dataclass(kw_only=True)
class Report:
    """Where a part writes its rows.

    Attributes:
        folder: Of the results; rows that are there already stay.
        part: Name of the part.
        seconds: That the part has; measurements that would not fit are skipped.
    """

    folder: Path
    part: str
    seconds: float = math.inf
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the part should be done."""
        return self.seconds - (time.monotonic() - self.began)

    def value(self, name: str, value: float | str, unit: str = "", detail: str = "") -> None:
        """Add a measurement."""
        self.add(name, "measured", value=value, unit=unit, detail=detail)

    def check(
        self, name: str, value: float, limit: float, unit: str = "", detail: str = ""
    ) -> None:
        """Add a measurement that may be at most `limit`; NaN never passes."""
        verdict = "passed" if value <= limit else "FAILED"
        self.add(name, verdict, value=value, limit=limit, unit=unit, detail=detail)

    def skip(self, name: str, why: str) -> None:
        """Add what was not measured."""
        self.add(name, "skipped", detail=why)

    def attempt(self, name: str, job: Callable[[], None], needs: float = 0.0) -> bool:
        """Run a measurement; if it fails, its traceback is a row and the part goes on.

        Args:
            name: Of the row where there is no result.
            job: Adds rows itself.
            needs: Seconds; it is skipped where fewer are left.

        Returns:
            Whether it ran to its end.

        Raises:
            RuntimeError: The card no longer works for this process, so nothing after it would.
        """
        if self.left < max(needs, 1e-9):
            self.skip(name, f"no time left: needs about {needs:.0f} s, has {self.left:.0f} s")
            return False
        try:
            job()
        except Exception:
            # Whatever it is, it is a result: of a kernel that is missing, of memory that is full.
            self.add(name, "error", detail=traceback.format_exc())
            free()
            return False
        return True

    def add(
        self,
        name: str,
        verdict: Verdict,
        *,
        value: float | str | None = None,
        unit: str = "",
        limit: float | None = None,
        detail: str = "",
    ) -> None:
        """Add a row and write both files."""
        at = round(time.monotonic() - self.began, 1)
        row = Row(part=self.part, name=name, verdict=verdict, value=value, unit=unit, limit=limit,
                  detail=detail, at=at)  # fmt: skip
        rows = [*read_rows(self.folder), row]
        # JSON has no NaN, and other programs refuse Python's.
        entries = [{k: _plain(v) for k, v in asdict(entry).items()} for entry in rows]
        _write(self.folder / RESULTS, json.dumps(entries, indent=1))
        _write(self.folder / TABLE, as_table(rows))
        print(f"{self.part}: {_line(row)}", flush=True)


def free() -> None:
    """Give back the memory of what is no longer used.

    Raises:
        RuntimeError: The card no longer works for this process.
    """
    import torch  # here, because the process that starts the parts does without

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def read_rows(folder: Path) -> list[Row]:
    """The rows of a folder so far."""
    path = folder / RESULTS
    if not path.exists():
        return []
    return [Row(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def as_table(rows: list[Row]) -> str:
    """The rows in Markdown, a table for each part."""
    counts = {name: sum(row.verdict == name for row in rows) for name in ("FAILED", "error")}
    lines = ["# On a card", "", f"{len(rows)} rows, " + ", ".join(
        f"{count} {name}" for name, count in counts.items()) + "."]  # fmt: skip
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", f"## {part}", "", "| what | result | at most | verdict | at | notes |",
                  "| --- | ---: | ---: | --- | ---: | --- |"]  # fmt: skip
        for row in rows:
            if row.part == part:
                verdict = "" if row.verdict == "measured" else row.verdict
                found, most = _number(row.value, row.unit), _number(row.limit, row.unit)
                note = _last_line(row.detail)
                cells = (row.name, found, most, verdict, f"{row.at:.1f} s", note)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _line(row: Row) -> str:
    found = _number(row.value, row.unit)
    most = f" (at most {_number(row.limit, row.unit)})" if row.limit is not None else ""
    return f"{row.name}: {row.verdict} {found}{most} {_last_line(row.detail)}".rstrip()


def _number(value: float | str | None, unit: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
