"""Any configuration: valid and written out again as it is, or refused in a sentence."""

from __future__ import annotations

import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pbe_model.config import CONFIGS, PBEConfig
from training.config import CONFIGS as FOLDER
from training.config import RunConfig, bundled_configs, load_config, to_toml

from .examples import bounded, examples, refusal
from .mutants import mutants

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-2, 20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(("bundled", "demo", "tiny", "v", "no", "../x", "a\0b", "\x1b[31m")),
)
VALUES = st.recursive(
    SCALARS | st.just(date(2020, 2, 2)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def entries_of(model: BaseModel, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all entries of a configuration."""
    found = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        found.append((*prefix, name))
        if isinstance(value, BaseModel):
            found += entries_of(value, (*prefix, name))
    return found


ENTRIES = entries_of(RunConfig())
NAMES = st.sampled_from(ENTRIES) | st.lists(st.text(max_size=6), min_size=1, max_size=3).map(tuple)


def set_entry(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        inner = values.get(name)
        if not isinstance(inner, dict):
            inner = values[name] = {}
        values = inner
    values[path[-1]] = value


def outcome(path: Path) -> RunConfig | None:
    """The configuration of a file, or None where it is refused, as it should be."""
    try:
        with bounded():
            return load_config(str(path))
    except ValueError as error:
        refusal(error)
        return None


@examples(60)
@given(
    base=st.sampled_from((None, *bundled_configs())),
    changes=st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=4),
)
def test_entries_of_any_kind(base: str | None, changes: list[tuple[tuple[str, ...], object]]):
    values: dict[str, Any] = {} if base is None else {"base": base}
    for entry, value in changes:
        set_entry(values, entry, value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.toml")
        path.write_text(tomli_w.dumps(values), encoding="utf-8")
        config = outcome(path)
        if config is not None:
            path.write_text(to_toml(config), encoding="utf-8")
            assert load_config(str(path)) == config


@examples(60)
@given(data=st.data(), name=st.sampled_from(bundled_configs()))
def test_files_with_damage(data: st.DataObject, name: str):
    text = (FOLDER / f"{name}.toml").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.toml")
        path.write_bytes(data.draw(mutants(text)))
        outcome(path)


PARTS = ("unet", "vae", "exemplar", "schedule", "defaults")
JSON = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@examples(100)
@given(data=st.data(), name=st.sampled_from(sorted(CONFIGS)))
def test_architectures_of_any_kind(data: st.DataObject, name: str):
    values = json.loads(json.dumps(CONFIGS[name].to_dict()))
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from((None, *PARTS)))
        inner = values if part is None else values.setdefault(part, {})
        if not isinstance(inner, dict):
            continue
        known = st.sampled_from(sorted(inner)) if inner else st.nothing()
        inner[data.draw(known | st.text(max_size=8))] = data.draw(JSON)
    try:
        config = PBEConfig.from_dict(values)
    except ValueError as error:
        refusal(error)
        return
    assert PBEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
