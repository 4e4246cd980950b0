"""A run's configuration: a TOML file, checked, with overrides from the command line.

A file may name another as its `base` and say only what differs.

Unknown names are errors, so a typo cannot silently train something else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pbe_model.checkpoints.load import BUNDLED
from pbe_model.editing.denoise import SEEDS
from pbe_model.untrusted import first_line, read_bytes, shown
from training.data.augment import ExemplarAugment, PhotoRecolour, SampleGeometry
from training.demo.recipes import RecipeConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"
MAX_CONFIG = 2**18
"""Bytes of a configuration; a full one has some three thousand."""
_MOST_DOTS = 32  # in a line: a key of many parts takes the parser a time that grows with their cube
_MOST_BASES = 10


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, revalidate_instances="always")


class DataConfig(_Strict):
    """Photos with boxes: `root` holds the indexes that `pbe-train prepare` makes."""

    root: Path = Path("data/demo")
    source: Literal["index", "composites"] = "index"
    """The photos of `index`, or endless ones of the demo set's cut-outs and backgrounds, composed
    on the training's device."""
    index: str = "train/boxes.jsonl"
    val_index: str = "val/boxes.jsonl"
    sample: Literal["box", "photo"] = "box"
    """What an epoch goes through: every box, or every photo with one of its boxes drawn at random
    (what the paper does)."""
    workers: int = Field(default=1, ge=0, le=1024)
    """Processes that make samples, for each process that trains."""
    exemplar: ExemplarAugment = ExemplarAugment()
    """Distortions of the exemplar; a probability of 0 switches one off."""
    geometry: SampleGeometry = SampleGeometry()
    """Hole and crop."""
    recolour: PhotoRecolour = PhotoRecolour()
    """Changes of the photos' colours, for collections of a few dozen; off by default."""
    composites: RecipeConfig = RecipeConfig()
    """How those are made; of `geometry` only `bezier` and `jitter` count for them, and `exemplar`,
    `recolour` and `geometry_variants` do not."""
    geometry_variants: int | None = Field(default=None, ge=1, le=2**16)
    """Different crops and masks of an object. A number makes a latent bank possible, computed
    once; none draws fresh ones for every sample, as the paper does."""


class OptimConfig(_Strict):
    """Optimizer, learning rate with linear warm-up, clipping."""

    name: str = "torch.optim.AdamW"
    """Import path of the optimizer's class, such as bitsandbytes.optim.AdamW8bit."""
    options: dict[str, bool | int | float | str] = {}
    """More arguments of that class."""
    lr: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=10_000, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    """Given to classes that take them."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    skip_bad_steps: int = Field(default=0, ge=0)
    """So many updates in a row whose loss or gradient is not finite are left out before the run
    stops; 0 stops at the first."""


class LossConfig(_Strict):
    """What the denoiser is asked for, and how much each timestep counts. The paper's by default."""

    prediction: Literal["epsilon", "v"] = "epsilon"
    """The noise, or v (arXiv 2202.00512). A v model has no official layout."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise (arXiv 2305.08891); v only."""
    drop_condition: float = Field(default=0.2, ge=0, le=1)
    """Share of the samples whose exemplar is replaced by the learnable vector."""
    min_snr: float = Field(default=0.0, ge=0)
    """Clip of the min-SNR loss weighting (arXiv 2303.09556); 0 turns it off. It gives no weight to
    the pure noise of zero_terminal_snr."""
    v_weight: bool = False
    """Weigh timesteps as a loss on v would, so that the noisiest count too (arXiv 2202.00512)."""
    timestep_shift: float = Field(default=1.0, gt=0, le=100)
    """Timesteps are drawn as `s u / (1 + (s - 1) u)` of the schedule, with u uniform (arXiv
    2403.03206, section 5.3.2): above 1 favours the noisy ones, at which the exemplar decides what
    appears; 1 is the paper's."""
    keep_weight: float = Field(default=1.0, ge=0)
    """Weight of the error where the photo is kept; 1 inside the hole. The network copies what is
    kept, so a short training spends most of a plain mean on what is no news."""
    thumbnail_weight: float = Field(default=0.0, ge=0)
    """Weight of a second loss for a tower that starts from nothing: draw a thumbnail of the
    exemplar from its condition. Of the exemplar stage it is the only loss, without a weight."""
    thumbnail_side: int = Field(default=8, ge=1, le=64)
    """In pixels."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Deviation of an offset added to the noise of each sample and channel; 0 turns it off. The
    schedule never destroys a picture's mean colours, so a model learns to read them from the noisy
    latent, and takes those of the noise when it samples. The offset hides them."""
    kl_weight: float = Field(default=1e-4, ge=0)
    """Weight of the divergence per latent element in the first stage's loss."""


class EMAConfig(_Strict):
    """Averages of the weights; off by default, the paper keeps none."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """Of the classic average, which validation, samples and export then use; 0 turns it off."""
    lengths: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=0.289)], ...], Field(max_length=16)
    ] = ()
    """Relative lengths of power-function averages (arXiv 2312.02696), such as 0.05 and 0.1. Two of
    them allow `pbe-train export --ema-length` to make the average of any length afterwards."""
    snapshot_every: int = Field(default=1000, ge=1)
    """Steps between the snapshots of the power-function averages that are kept for that."""


class LoRAConfig(_Strict):
    """Low-rank adapters (arXiv 2106.09685) instead of all weights."""

    rank: int = Field(default=0, ge=0, le=1024)
    """0 turns them off."""
    alpha: float = Field(default=0.0, ge=0)
    """The adapters' output is scaled by alpha / rank; 0 takes the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("attn1", "attn2", "ff")
    """Parts of module names; also proj_in, proj_out and mapper."""


class CheckpointConfig(_Strict):
    """Checkpoints to resume from."""

    every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    """The newest so many stay."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps divisible by this stay for good; 0 keeps none."""


class LogConfig(_Strict):
    """Figures and pictures."""

    every: int = Field(default=20, ge=1)
    """Steps between figures; each is the mean since the last."""
    sample_every: int | None = Field(default=None, ge=1)
    """Steps between validation loss and sample grid, which step 0 and the last one have as well; by
    default a fifth of the run, and at most 500."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Beside log.jsonl, which is always written."""


def _bundled(init: object) -> object:
    return BUNDLED if str(init) == "bundled" else init


class RunConfig(_Strict):
    """One training run."""

    stage: Literal["first_stage", "exemplar", "diffusion"] = "diffusion"
    """The autoencoder of photos; a small exemplar tower alone; the denoiser."""
    out: Path = Path("runs/run")
    model: Literal["demo", "tiny", "v1"] = "v1"
    tokens: Literal["class", "all"] = "class"
    """Tokens of the exemplar: one is the paper's bottleneck, all its ablation."""
    init: Annotated[Path | None, BeforeValidator(_bundled)] = None
    """Checkpoint to start from: a first stage, Stable Diffusion 1.x, a whole model; or the word
    bundled, for the model that comes with the package."""
    init_tower: Path | None = None
    """CLIP ViT-L/14 (transformers' folder or file) where `init` has no image tower."""
    init_parts: tuple[Literal["vae", "unet", "encoder"], ...] = ("vae", "unet", "encoder")
    """What is taken of `init`; without unet the denoiser starts from nothing."""
    train_tower: bool = False
    """Train the image tower along (it is frozen at official size)."""
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    steps: int = Field(default=100_000, ge=1, lt=10**8)
    batch_size: int = Field(default=256, ge=1, le=2**16)
    """Samples an update, over all processes and accumulation steps."""
    accumulate: int = Field(default=1, ge=1, le=2**16)
    precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Compute the denoiser's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the network for the device at the first update: takes a minute, for long runs."""
    cuda_graphs: bool = False
    """Start a network's kernels all at once, for small networks on fast cards; one process only."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0 leaves torch's choice."""
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    ema: EMAConfig = EMAConfig()
    lora: LoRAConfig = LoRAConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.loss.zero_terminal_snr and self.loss.prediction != "v":
            raise ValueError(
                "loss.zero_terminal_snr needs loss.prediction = 'v': at zero signal the noise is "
                "the input, and predicting it teaches nothing"
            )
        if self.loss.v_weight and self.loss.prediction == "v":
            raise ValueError("loss.v_weight is what loss.prediction = 'v' has of itself; drop one")
        if self.stage == "exemplar" and self.data.source != "composites":
            raise ValueError(
                "stage = 'exemplar' learns from cut-outs, whose silhouettes are known; set "
                "data.source to 'composites'"
            )
        if self.lora.rank and self.stage != "diffusion":
            raise ValueError("lora.rank is for the diffusion stage; set it to 0")
        return self

    @property
    def sample_every(self) -> int:
        """Steps between validation loss and sample grid, as set or by default."""
        return self.log.sample_every or max(1, min(500, self.steps // 5))


def bundled_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        name: A bundled name (`bundled_configs`) or the path of a TOML file.
        overrides: Command line words such as `--steps 100 --optim.lr 1e-4`.

    Raises:
        ValueError: No such file, not TOML, unknown or invalid entries.
        SystemExit: Code 2, after naming the override whose value is wrong.
    """
    values, path = _read(name)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {one_sentence(error)}") from error
    if not overrides:
        return config
    _check_names(overrides)
    try:
        return tyro.cli(RunConfig, default=config, args=list(overrides), prog="pbe-train train")
    except ValidationError as error:
        raise ValueError(one_sentence(error)) from error


def _check_names(overrides: Sequence[str]) -> None:
    """Raise `ValueError` for a flag that is no entry, with the one it most likely stands for."""
    for word in overrides:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name not in (*_entries(), "help"):
            group, dot, last = name.rpartition(".")
            if group + dot + last.removeprefix("no_") not in _entries():
                raise ValueError(f"unknown entry '{shown(word)}'; {_hint(name, '--')}")


def _read(name: str, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Path]:
    """Entries of a file on top of those of its `base`, and the file."""
    places = [Path(name), *(file.parent / name for file in above[:1]), CONFIGS / f"{name}.toml"]
    path = next((place for place in places if os.path.isfile(place)), None)
    if path is None:
        raise ValueError(
            f"no configuration '{shown(name)}': give the path of a TOML file or one of "
            f"{bundled_configs()}"
        )
    if path in above:
        raise ValueError(f"{path} is its own base; name another file")
    if len(above) > _MOST_BASES:
        raise ValueError(f"{path} is the base of more than {_MOST_BASES}; put some together")
    values = _parse_toml(path)
    base = values.pop("base", None)
    if base is None:
        return values, path
    if not isinstance(base, str):
        raise ValueError(f"{path}: base = {shown(base)} is wrong: give the name of a configuration")
    return _over(_read(base, (path, *above))[0], values), path


def _parse_toml(path: Path) -> dict[str, Any]:
    try:
        data = read_bytes(path, MAX_CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {first_line(error)}; give another file") from error
    try:
        text = data.decode()
        for number, line in enumerate(text.split("\n"), start=1):
            if line.count(".") > _MOST_DOTS:
                raise ValueError(f"line {number} has more than {_MOST_DOTS} dots")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise ValueError(f"{path} is not valid TOML: {reason}; correct that line") from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        found = merged.get(name)
        if isinstance(found, dict) and isinstance(value, dict):
            value = _over(found, value)
        merged[name] = value
    return merged


def to_toml(config: RunConfig) -> str:
    """All entries of a configuration, defaults included, as a file that `load_config` reads."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def changed_settings(
    before: dict[str, Any], after: dict[str, Any]
) -> dict[str, tuple[object, object]]:
    """Entries of two dumped configurations that differ, except for the folder of the run itself.

    Returns:
        (before, after) by dotted name.
    """
    old, new = _flat(before), _flat(after)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name != "out"
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


_SYNONYMS = {
    "learning_rate": "optim.lr",
    "optimizer": "optim.name",
    "weight_decay": "optim.weight_decay",
    "warmup": "optim.warmup_steps",
    "scheduler": "optim.decay",
    "grad_clip": "optim.clip",
    "max_grad_norm": "optim.clip",
    "batch": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "mixed_precision": "precision",
    "epochs": "steps",
    "num_epochs": "steps",
    "max_steps": "steps",
    "max_train_steps": "steps",
    "output_dir": "out",
    "checkpoint_path": "init",
    "pretrained": "init",
    "resume": "out",
    "num_workers": "data.workers",
    "image_size": "model",
    "resolution": "model",
    "save_steps": "checkpoint.every",
    "save_every": "checkpoint.every",
    "log_every": "log.every",
    "val_every": "log.sample_every",
}
"""What other trainers call these entries."""


def _entries() -> list[str]:
    """Dotted names of all entries, those included that are empty tables by default."""
    return [*_flat(RunConfig().model_dump()), "optim.options"]


def _hint(name: str, prefix: str = "") -> str:
    """What to do about an unknown name: the entry that it most likely stands for, if any."""
    last = name.rpartition(".")[2].replace("-", "_")
    meant = _SYNONYMS.get(last)
    if meant is None:  # the right name in another group, or nearly the right one
        entries = _entries()
        same = [entry for entry in entries if entry.rpartition(".")[2] == last]
        near = same or get_close_matches(name, entries, n=1)
        near = near or [_SYNONYMS[other] for other in get_close_matches(last, _SYNONYMS, n=1)]
        meant = next(iter(near), None)
    return (
        f"did you mean '{prefix}{meant}'?" if meant else "pbe-train train CONFIG --help lists them"
    )


def one_sentence(error: ValidationError) -> str:
    """The first thing that is wrong with a configuration."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = shown(".".join(str(part) for part in first["loc"]))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown entry '{where}'; {_hint(where)}"
    message = first_line(ValueError(first["msg"].removeprefix("Value error, ")))
    found = first["input"]
    found = f"'{shown(found)}'" if isinstance(found, str) else shown(found)
    return f"{where} = {found} is wrong: {message}" if where else message
