"""Lines of `pbe batch` that no edit can be; each file has a good line behind the bad one."""

from __future__ import annotations

import json
from typing import Any

from .case import HUGE, TERMINAL, Case, Table, built, content, sparse

GOOD = {"image": "photo.png", "mask": "mask.png", "exemplar": "exemplar.png"}
"""Files that lie beside those that are made here."""

_LAST = json.dumps({**GOOD, "out": "good.png"})
_UNREAD = "cannot read"


def _line(says: str, text: str | bytes) -> Case:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return Case(built(lambda: raw + b"\n" + _LAST.encode() + b"\n"), f"line 1: .*({says})")


def _with(says: str, **values: Any) -> Case:
    return _line(says, json.dumps({**GOOD, **values}))


FILES: Table = {
    # ---- no lines
    "zeros.jsonl": Case(sparse(b"", 2**36), _UNREAD),
    "sparse.jsonl": Case(sparse(b"{}", 2**28 - 1), f"{_UNREAD}|line 1: not valid JSON"),
    "newlines.jsonl": Case(built(lambda: b"\n" * 2**25), f"{_UNREAD}|is empty"),
    "letters.jsonl": Case(content(b"\xff\xfe{}\n"), f"{_UNREAD}|is not UTF-8"),
    "empty.jsonl": Case(content(b""), "is empty"),
    # ---- not JSON
    "deep.jsonl": _line("nested too deeply", '{"image":' + "[" * 400_000),
    "deep_objects.jsonl": _line("nested too deeply", '{"image":' * 400_000),
    **{
        f"nested_{levels}.jsonl": _line(
            "nested too deeply|give a string",
            '{"image":' + "[" * levels + "]" * levels + "}",
        )
        for levels in (100, 900, 960, 970, 980, 985, 990)
    },
    "digits.jsonl": _line("not valid JSON", '{"steps":' + "9" * 5_000 + "}"),
    "list.jsonl": _line("is not a JSON object", "[" + "1," * 100_000 + "1]"),
    "page.jsonl": _line("not valid JSON", "<html>"),
    "text.jsonl": _line("is not a JSON object", json.dumps(TERMINAL * 1_000)),
    # ---- no options
    "escapes.jsonl": _with(r"no option '\\x1b\]0;owned\\x07", **{TERMINAL: 1}),
    "help.jsonl": _with("no option 'help'", help=True),
    "checkpoint.jsonl": _with("for all lines", checkpoint="two_faced.ckpt"),
    "nothing.jsonl": _with("no option ''", **{"": 1}),
    "dashes.jsonl": _with("no option '__'", **{"--": 1}),
    "table.jsonl": _with("give a string", image={TERMINAL: TERMINAL}),
    "null.jsonl": _with("give a string", image=None),
    # ---- numbers
    "steps_huge.jsonl": _with("steps", steps=HUGE),
    "steps_2_40.jsonl": _with("steps", steps=2**40),
    "steps_minus.jsonl": _with("steps", steps=-1),
    "seed_huge.jsonl": _with("seed", seed=HUGE),
    "seed_minus.jsonl": _with("seed", seed=-1),
    "resolution_huge.jsonl": _with("resolution", resolution=HUGE),
    "resolution_2_40.jsonl": _with("resolution", resolution=2**40),
    "resolution_minus.jsonl": _with("resolution", resolution=-64),
    "images_huge.jsonl": _with("num_images|num-images", num_images=HUGE),
    "images_2_40.jsonl": _with("num_images|num-images", num_images=2**40),
    "images_0.jsonl": _with("num_images|num-images", num_images=0),
    "images_minus.jsonl": _with("num_images|num-images", num_images=-5),
    "similarity_huge.jsonl": _with("similarity", similarity=HUGE),
    "similarity_nan.jsonl": _with("similarity", similarity=float("nan")),
    "context_nan.jsonl": _with("context", context=float("nan")),
    "blend_infinite.jsonl": _with("blend", blend=float("inf")),
    "blend_huge.jsonl": _with("blend", blend=1e300),
    "blend_nan.jsonl": _with("blend", blend=float("nan")),
    "strength_infinite.jsonl": _with("strength", strength=float("inf")),
    "lines.jsonl": _with(r"steps.*1\\n2", steps="1\n2"),
    # ---- names
    "long_name.jsonl": _with("too long", image="a" * 5_000),
    "long_out.jsonl": _with("too long|out is", out="a" * 300 + ".png"),
    "null_name.jsonl": _with("null", image="a\0b.png"),
    "null_out.jsonl": _with("null|out is", out="a\0b.png"),
    "surrogate.jsonl": _with(r"\\ud800", image="\ud800.png"),
    "surrogate_out.jsonl": _with(r"\\ud800|out is", out="\ud800.png"),
    "escaped_out.jsonl": _with("out is", out="\x1b[31m.png")._replace(passes=("batch",)),
    "escaped_name.jsonl": _with(r"\\x1b\]0;owned\\x07", image=f"{TERMINAL}.png"),
    "out_elsewhere.jsonl": _with("give a plain", out="../out.png"),
    "out_absolute.jsonl": _with("give a plain", out="/tmp/out.png"),
    "out_parent.jsonl": _with("give a plain", out=".."),
    "out_kind.jsonl": _with("give a plain", out="out.eps"),
    "out_twice.jsonl": Case(
        built(lambda: (_LAST + "\n" + json.dumps({**GOOD, "out": "good.png"}) + "\n").encode()),
        "line 2: .*is already the result of line 1",
    ),
    "device.jsonl": _with("not a regular file", image="/dev/zero"),
    "itself.jsonl": _with("not a picture", exemplar="itself.jsonl"),
    "folder.jsonl": _with("it is a folder", mask="."),
}
