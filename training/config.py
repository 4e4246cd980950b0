"""A run's configuration: a TOML file, checked, with overrides from the command line.

Unknown names are errors, so a typo cannot silently train something else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

BUNDLED = Path(__file__).parent / "configs"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """Photos with boxes: `root` holds an index and the pictures it names."""

    root: Path = Path("data/demo")
    index: str = "train/boxes.jsonl"
    val_index: str = "val/boxes.jsonl"
    workers: int = Field(default=1, ge=0)
    geometry_variants: int | None = Field(default=None, ge=1)
    """Different crops and masks of an object. A number makes a latent bank possible, computed
    once; none draws fresh ones for every sample, as the paper does."""
    antialias: bool = False
    """Resize photos with antialiasing (the paper does not)."""


class OptimConfig(_Strict):
    """AdamW with linear warm-up."""

    lr: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=10_000, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""


class RunConfig(_Strict):
    """One training run."""

    stage: Literal["first_stage", "diffusion"] = "diffusion"
    out: Path = Path("runs/run")
    model: Literal["tiny", "v1"] = "v1"
    tokens: Literal["class", "all"] = "class"
    init: Path | None = None
    """Checkpoint to start from: the first stage of a demo run, or all weights."""
    train_tower: bool = False
    """Train the image tower along (it is frozen at official size)."""
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=100_000, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Samples an update, over all processes and accumulation steps."""
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["no", "bf16", "fp16"] = "no"
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves torch's choice."""
    drop_condition: float = Field(default=0.2, ge=0, le=1)
    """Share of the samples whose exemplar is replaced by the learnable vector."""
    min_snr: float = Field(default=0.0, ge=0)
    """Clip of the min-SNR loss weighting (arXiv 2303.09556); 0 turns it off."""
    v_weight: bool = False
    """Weigh timesteps as a loss on v would, so that the noisiest count too (arXiv 2202.00512)."""
    thumbnail_weight: float = Field(default=0.0, ge=0)
    """Weight of a second loss for a tower that starts from nothing: draw an 8 x 8 thumbnail of the
    exemplar from its condition."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Deviation of an offset added to the noise of each sample and channel; 0 turns it off. The
    schedule never destroys a picture's mean colours, so a model learns to read them from the noisy
    latent, and takes those of the noise when it samples. The offset hides them."""
    kl_weight: float = Field(default=1e-4, ge=0)
    """Weight of the divergence per latent element in the first stage's loss."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the weight average; 0 turns it off (the paper keeps none)."""
    log_every: int = Field(default=20, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    sample_every: int = Field(default=500, ge=1)
    """Steps between validation loss and sample grid."""
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()


def bundled_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.toml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        name: A bundled name (`bundled_configs`) or the path of a TOML file.
        overrides: Command line words such as `--steps 100 --optim.lr 1e-4`.

    Raises:
        ValueError: No such file, not TOML, unknown or invalid entries.
        SystemExit: Code 2, after naming the override that is wrong.
    """
    path = Path(name)
    if not path.is_file():
        path = BUNDLED / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"no configuration {name!r}: give the path of a TOML file or one of {bundled_configs()}"
        )
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}; correct that line") from error
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {_one_sentence(error)}") from error
    if not overrides:
        return config
    try:
        return tyro.cli(RunConfig, default=config, args=list(overrides), prog="pbe-train train")
    except ValidationError as error:
        raise ValueError(_one_sentence(error)) from error


def _one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown entry {where!r}; see `pbe-train train --help` for the names"
    return f"{where} = {first['input']!r} is wrong: {first['msg']}"
