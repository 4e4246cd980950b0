"""The commands that pages give for a card: the benchmarks know every word of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ..test_docs import parser_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "modules"),
    [
        ("README.md", {"benchmarks.gpu"}),
        ("docs/gpu.md", {"benchmarks.gpu"}),
        ("benchmarks/gpu.md", {"benchmarks.gpu", "benchmarks.gpu.pack_host"}),
    ],
)
def test_commands_are_understood(page: str, modules: set[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"python3? -m (benchmarks\.gpu\S*) ([^\n<]+)", text)
    assert {module for module, _ in found} == modules
    for module, words in found:
        parser_of(module).parse_args(shlex.split(words))
