"""`make pictures`: everything in the repository that shows the bundled model, made anew.

What needs a ComfyUI, a browser or evaluation data is left out where there is none, and a line says
so. Exit codes: 0 done, 1 something failed although what it needs is there, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.nodes.browser import find_browser
from tests.nodes.conftest import HOW_TO_GET_IT
from tests.nodes.host import Host, HostError, find_host

from . import demo, figures, help_pages, page, thumbnails
from .hosting import running_host
from .report import Report

KINDS = ("demo", "thumbnails", "help", "page", "figures")
_HOSTED = ("thumbnails", "help", "page")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pictures of the kinds that are asked for, or of all."""
    parser = argparse.ArgumentParser(prog="docs.pictures", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} [all]")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="from pbe-train prepare demo; for the figures"
    )
    given = parser.parse_args(arguments)
    if unknown := [kind for kind in given.kinds if kind not in KINDS]:
        parser.error(f"there is no kind {unknown[0]!r}; choose from {', '.join(KINDS)}")
    kinds, report = given.kinds or KINDS, Report()
    try:
        if "demo" in kinds:
            demo.make(report)
        if wanted := [kind for kind in _HOSTED if kind in kinds]:
            _make_hosted(wanted, report)
        if "figures" in kinds and given.data is None:
            how = "give DATA=FOLDER, a set that `pbe-train prepare demo` has made"
            report.left_out("the table of figures", how)
        elif "figures" in kinds:
            figures.make(given.data, report)
    except (HostError, ValueError) as error:
        report.failed(str(error))
    return int(report.has_failed)


def _make_hosted(kinds: list[str], report: Report) -> None:
    """What ComfyUI gives or shows."""
    found = find_host()
    if found is None:
        report.left_out(_in_words(kinds), HOW_TO_GET_IT)
        return
    with running_host(*found) as host:
        if "thumbnails" in kinds:
            thumbnails.make(host, found[0], report)
        if "help" in kinds:
            help_pages.make(host, report)
        if shots := _shots(kinds):
            _take(host, shots, report)


def _shots(kinds: list[str]) -> list[page.Shot]:
    starter = [page.starter()] if "page" in kinds else []
    return starter + (help_pages.shots() if "help" in kinds else [])


def _take(host: Host, shots: list[page.Shot], report: Report) -> None:
    browser = find_browser()
    if isinstance(browser, str):
        report.left_out(_in_words([shot.path.name for shot in shots]), browser)
    else:
        page.make(host, browser, shots, report)


def _in_words(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


if __name__ == "__main__":
    sys.exit(main())
