"""The table of the page on the bundled model, from `pbe-train evaluate demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pbe_model.atomic import replacing

from .hosting import ROOT
from .report import Report

PAGE = ROOT / "docs/bundled-model.md"
BEGIN = "<!-- figures: `make pictures DATA=FOLDER` replaces what follows -->"
END = "<!-- end of figures -->"

_EXPLAINED = {
    "similarity 0": "similarity 0 (exemplar not seen)",
    "the photo itself": "the photo itself: the best the descriptor can score",
}
_COLUMNS = ("painted", "top-1", "95 % interval", "in grey", "likeness", "psnr", "seam",
            "sharpness", "error outside")  # fmt: skip


def make(data: Path, report: Report, *options: str) -> None:
    """Evaluate the bundled model and replace the table.

    Args:
        data: made by `pbe-train prepare demo`.
        report: is told.
        options: more of `pbe-train evaluate demo`.
    """
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training", "evaluate", "demo", "--data", str(data)]
        command += ["--out", folder, *options]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            report.failed(f"the model could not be evaluated: {said[-1]}")
            return
        found = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
    report.made(PAGE, write_between(PAGE, table(found)))


def table(evaluation: dict[str, Any]) -> str:
    """An evaluation as a table of Markdown.

    Args:
        evaluation: what `pbe-train evaluate demo` writes as evaluation.json.
    """
    rows = evaluation["rows"]
    lines = [
        f"{rows[0]['pairs']} pairs of `{evaluation['split']}`, {evaluation['steps']} steps of "
        f"`{evaluation['sampler']}`:",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for row in rows:
        low, high = row["interval_95"]
        error = "" if row["psnr"] is None else f"{row['psnr']:.2f}"
        cells = [
            _EXPLAINED.get(row["name"], row["name"].replace("shuffled,", "shuffled exemplars,")),
            f"{row['retrieval']:.1%}".replace("%", " %"),
            f"{100 * low:.1f} to {100 * high:.1f} %",
            f"{row['retrieval_grey']:.1%}".replace("%", " %"),
            f"{row['likeness']:.3f}",
            error,
            f"{row['seam']:.2f}",
            f"{row['sharpness']:.2f}",
            f"{row['outside']:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_between(page: Path, text: str) -> bool:
    """Replace what stands between the two marker comments of a page.

    Returns:
        Whether the page has changed.

    Raises:
        ValueError: it does not have each of them once, in this order.
    """
    before = page.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head or END in tail:
        raise ValueError(f"{page} needs the lines {BEGIN!r} and {END!r}, once and in this order")
    after = f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"
    if after != before:
        with replacing(page) as part:
            part.write_text(after, encoding="utf-8")
    return after != before
