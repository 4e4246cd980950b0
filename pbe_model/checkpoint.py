"""Loading and saving models, strictly: every tensor accounted for, shapes checked, no code run.

Files hold the official names (`model.diffusion_model.`, `first_stage_model.`,
`cond_stage_model.`, `proj_out.`, `learnable_vector`). Ours are safetensors with the configuration
in the metadata; without it the sizes are read off the tensors.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .attention import Attention, sdpa_attention, select_attention
from .config import ExemplarConfig, PBEConfig, UNetConfig, VAEConfig
from .convert import FOLDERS, diffusers_config, diffusers_configs, from_diffusers, to_diffusers
from .model import PaintByExample
from .unpickle import load_tensors

PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "encoder": ""}
"""Prefix of each part of the model in a checkpoint."""

BUNDLED = Path(__file__).parent / "assets" / "tiny.safetensors"

Layout = Literal["safetensors", "official", "diffusers"]

_OURS = ("format", "pbe_config")  # metadata that is written anew
_TOWER = "cond_stage_model.transformer."
_POSITION_IDS = _TOWER + "vision_model.embeddings.position_ids"
# Official files carry these; they follow from the configuration or belong to training.
_DERIVED = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|"
    r"lvlb_weights|logvar|scale_factor)"
    r"|cond_stage_model\.transformer\.(vision_model\.)?embeddings\.position_ids"
    r"|image_encoder\.model\.(vision_model\.)?embeddings\.position_ids"
    r"|model_ema\..*"
)


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under the official names, and what it says of itself."""

    path: Path
    tensors: dict[str, Tensor]
    dropped: list[str]
    """Names in the file that a model does not need."""
    metadata: dict[str, str]
    format: str


@dataclass(frozen=True)
class Report:
    """What `inspect` finds."""

    path: Path
    format: str
    config: PBEConfig
    size: int
    """Bytes of the file, or of all files in the folder."""
    parameters: int
    dtypes: list[str]
    missing: list[str]
    unexpected: list[str]
    dropped: list[str]
    metadata: dict[str, str]


def read(path: str | Path) -> Checkpoint:
    """Read a `.safetensors`, a pickled checkpoint or a folder of diffusers, complete or not.

    Raises:
        ValueError: No such file, damaged, or no tensors in it.
    """
    path = Path(path)
    if path.is_dir():
        loaded, metadata, kind = *_read_diffusers(path), "diffusers folder"
    elif not path.is_file():
        raise ValueError(f"no checkpoint at {path}; check the path")
    elif path.suffix == ".safetensors":
        loaded, metadata, kind = *_read_safetensors(path), "safetensors"
    else:
        outer = load_tensors(path)
        nested = outer.get("state_dict", outer)
        if not isinstance(nested, dict):
            raise ValueError(f"{path}: its 'state_dict' is no dictionary; it is no model")
        loaded = {k: v for k, v in nested.items() if isinstance(k, str) and isinstance(v, Tensor)}
        metadata, kind = {}, "official ckpt"
    tensors, dropped = {}, []
    for name, tensor in loaded.items():
        if _DERIVED.fullmatch(name):
            dropped.append(name)
        else:
            tensors[_canonical(name)] = tensor
    if not tensors:
        raise ValueError(f"{path} holds no weights; give a Paint by Example checkpoint")
    return Checkpoint(path, tensors, dropped, metadata, kind)


def _read_diffusers(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A folder's tensors under official names; its configuration becomes our metadata."""
    configs, tensors = {}, {}
    for part in FOLDERS:
        file = path / part / "config.json"
        if not file.is_file():
            raise ValueError(
                f"the folder {path} has no {part}/config.json; give a Paint by Example folder of "
                "diffusers, or a .safetensors or .ckpt file"
            )
        configs[part] = _read_json(file)
        for name, tensor in _read_folder_part(path / part).items():
            tensors[f"{part}.{name}"] = tensor
    try:
        config = diffusers_config(configs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    named = from_diffusers(tensors, _expected(config), config)
    return named, {"pbe_config": json.dumps(config.to_dict())}


def _read_folder_part(folder: Path) -> dict[str, Tensor]:
    """All tensors of one subfolder: one file or shards with an index, safe files first."""
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    for suffix in (".safetensors", ".bin"):
        for stem in stems:
            single, index = folder / (stem + suffix), folder / f"{stem}{suffix}.index.json"
            if single.is_file():
                return _read_shard(single)
            if index.is_file():
                found = _read_json(index).get("weight_map")
                if not isinstance(found, dict):
                    raise ValueError(f"{index} has no weight_map; download the folder again")
                tensors: dict[str, Tensor] = {}
                for name in sorted(set(map(str, found.values()))):
                    # The name alone: an index must not lead out of its folder.
                    tensors |= _read_shard(folder / Path(name).name)
                return tensors
    raise ValueError(f"no weights in {folder}; download the folder again")


def _read_shard(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; download the folder again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    return {k: v for k, v in load_tensors(path).items() if isinstance(v, Tensor)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON ({error}); download the folder again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; download the folder again")
    return values


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); it is damaged, truncated or of "
            "another kind: download or export it again"
        ) from error


def _canonical(name: str) -> str:
    """The official name: the tower below `vision_model.`, which some versions leave out."""
    if name.startswith(_TOWER) and not name.startswith(_TOWER + "vision_model."):
        return _TOWER + "vision_model." + name[len(_TOWER) :]
    return name


def infer_config(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> PBEConfig:
    """The architecture that a checkpoint is of: from its metadata, else from its shapes.

    Args:
        tensors: Under official names.
        metadata: Of the file; `pbe_config` holds the configuration as JSON.

    Raises:
        ValueError: Metadata that is no configuration, or tensors of another architecture.
    """
    if "pbe_config" in metadata:
        try:
            return PBEConfig.from_dict(json.loads(metadata["pbe_config"]))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the configuration in the file's metadata is damaged ({error}); "
                "pass the right one as config="
            ) from error

    def shape(name: str, dims: int = 4) -> torch.Size:
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != dims or not tensor.numel():
            raise ValueError(
                f"{name!r} is missing or misshapen: this is no Paint by Example checkpoint "
                "(Stable Diffusion files and LoRAs are not)"
            )
        return tensor.shape

    def indices(pattern: str) -> list[tuple[int, ...]]:
        regex = re.compile(pattern)
        found = {tuple(map(int, m.groups())) for m in map(regex.match, tensors) if m}
        return sorted(found)

    base, in_channels = shape("model.diffusion_model.input_blocks.0.0.weight")[:2]
    if in_channels != 9:
        raise ValueError(
            f"its denoiser takes {in_channels} channels and Paint by Example's takes 9: "
            "this is another model"
        )
    # A stack that is missing as a whole must not be taken for one of no layers.
    vision = _TOWER + "vision_model."
    shape("model.diffusion_model.input_blocks.1.0.in_layers.2.weight")
    shape("first_stage_model.encoder.down.0.block.0.conv1.weight")
    shape(vision + "encoder.layers.0.self_attn.q_proj.weight", 2)
    shape("cond_stage_model.mapper.resblocks.0.attn.c_qkv.weight", 2)
    # Downsamplings separate the levels; the rest of a level are its residual blocks.
    unet = r"model\.diffusion_model\.input_blocks\.(\d+)\."
    downs = [i for (i,) in indices(unet + r"0\.op\.weight")]
    blocks = [i for (i,) in indices(unet + r"0\.in_layers\.2\.weight")]
    last = [max(i for i in blocks if i < down) for down in downs] + [max(blocks)]
    widths = [
        shape(f"model.diffusion_model.input_blocks.{i}.0.in_layers.2.weight")[0] for i in last
    ]
    with_attention = {i for (i,) in indices(unet + r"1\.norm\.weight")}
    vae = r"first_stage_model\.encoder\.down\.(\d+)\.block\."
    ch = shape("first_stage_model.encoder.conv_in.weight")[0]
    levels = [i for (i,) in indices(vae + r"0\.conv1\.weight")]
    patch = shape(vision + "embeddings.patch_embedding.weight")
    side = round((shape(vision + "embeddings.position_embedding.weight", 2)[0] - 1) ** 0.5)
    hidden = patch[0]
    return PBEConfig(
        unet=UNetConfig(
            model_channels=base,
            num_res_blocks=len(blocks) // len(widths),
            channel_mult=tuple(w // base for w in widths),
            attention_resolutions=tuple(
                2**i for i, block in enumerate(last) if block in with_attention
            ),
            context_dim=shape("learnable_vector", 3)[-1],
        ),
        vae=VAEConfig(
            ch=ch,
            ch_mult=tuple(
                shape(f"first_stage_model.encoder.down.{i}.block.0.conv2.weight")[0] // ch
                for i in levels
            ),
            num_res_blocks=len(indices(r"first_stage_model\.encoder\.down\.0\.block\.(\d+)\.")),
            z_channels=shape("first_stage_model.post_quant_conv.weight")[0],
        ),
        exemplar=ExemplarConfig(
            image_size=side * patch[-1],
            patch_size=patch[-1],
            hidden_size=hidden,
            num_layers=len(indices(re.escape(vision) + r"encoder\.layers\.(\d+)\.")),
            num_heads=hidden // 64,
            mapper_layers=len(indices(r"cond_stage_model\.mapper\.resblocks\.(\d+)\.")),
        ),
    )


def state_dict(model: PaintByExample, parts: Iterable[str] = tuple(PARTS)) -> dict[str, Tensor]:
    """The weights of the model, or of some of its parts, under the official names."""
    return {
        _canonical(PARTS[part] + name): tensor
        for part in parts
        for name, tensor in getattr(model, part).state_dict().items()
    }


def _expected(config: PBEConfig) -> dict[str, Tensor]:
    """What a complete checkpoint holds: official names, and shapes without memory."""
    with torch.device("meta"):
        return state_dict(PaintByExample(config))


def load_weights(model: PaintByExample, tensors: Mapping[str, Tensor], source: object) -> None:
    """Give the model these weights; they become its parameters, without a copy.

    Args:
        model: May be on torch's meta device.
        tensors: Under official names.
        source: What to name in errors.

    Raises:
        ValueError: Names missing or unexpected, or a shape that differs; the first few are listed.
    """
    expected = state_dict(model)
    problems = [
        f"{kind} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} ({len(names)})"
        for kind, names in (
            ("missing", [n for n in expected if n not in tensors]),
            ("unexpected", [n for n in tensors if n not in expected]),
            (
                "of another shape",
                [n for n in expected if n in tensors and tensors[n].shape != expected[n].shape],
            ),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit the model: {'; '.join(problems)}; give a complete Paint by "
            "Example checkpoint, or its architecture as config="
        )
    for part, prefix in PARTS.items():
        module = getattr(model, part)
        weights = {name: tensors[_canonical(prefix + name)] for name in module.state_dict()}
        module.load_state_dict(weights, strict=True, assign=True)


def load_parts(model: PaintByExample, tensors: Mapping[str, Tensor], source: object) -> list[str]:
    """Copy in the weights of those parts of the model that a file holds, each of them whole.

    Args:
        model: Keeps its own weights for the other parts.
        tensors: Under official names.
        source: What to name in errors.

    Returns:
        The names of the parts found, of `PARTS`.

    Raises:
        ValueError: A part that is incomplete, or no part at all.
    """
    found = []
    for part in PARTS:
        expected = state_dict(model, [part])
        if not any(name in tensors for name in expected):
            continue
        bad = [n for n, t in expected.items() if n not in tensors or tensors[n].shape != t.shape]
        if bad:
            raise ValueError(
                f"{source}: the {part} lacks or misshapes {', '.join(bad[:5])} ({len(bad)}); "
                "give a checkpoint of the same architecture"
            )
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(tensors[name])
        found.append(part)
    if not found:
        raise ValueError(f"{source} holds no part of a Paint by Example model")
    return found


def load_model(
    path: str | Path | None = None,
    *,
    config: PBEConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> PaintByExample:
    """Load a model; see `PaintByExample.from_checkpoint`."""
    device = torch.device(device)
    backend = select_attention(attention, device, dtype)
    model = _assemble(read(BUNDLED if path is None else path), config, backend)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _assemble(
    file: Checkpoint, config: PBEConfig | None = None, attention: Attention = sdpa_attention
) -> PaintByExample:
    """A model with the file's tensors as its parameters, of the types they have there."""
    try:
        config = config or infer_config(file.tensors, file.metadata)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    with torch.device("meta"):
        model = PaintByExample(config, attention=attention)
    load_weights(model, file.tensors, file.path)
    for module in model.modules():
        # transformers keeps the positions 0 .. n as a buffer outside the state dict.
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            module.position_ids = torch.arange(ids.shape[-1])[None]
    return model


def save_model(
    path: str | Path,
    model: PaintByExample,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, Any] | None = None,
    parts: Iterable[str] = tuple(PARTS),
) -> None:
    """Write safetensors with the configuration in the metadata; appears whole or not at all.

    Args:
        path: Ends in `.safetensors`.
        model: To be saved.
        dtype: Type of the weights in the file.
        metadata: Further entries; values that are no strings are stored as JSON.
        parts: Of the model, all by default.
    """
    path = Path(path)
    weights = state_dict(model, parts)
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in weights.items()}
    tensors.update(model.schedule.buffers())
    entries = {
        "format": "pt",
        "pbe_config": json.dumps(model.config.to_dict()),
        **{k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()},
    }
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata=entries)
    os.replace(part, path)


def save_official(
    path: str | Path, model: PaintByExample, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the official layout: a torch file whose `state_dict` has the official names.

    Appears whole or not at all. The published file is float32.
    """
    path = Path(path)
    tensors = {n: t.detach().to("cpu", dtype) for n, t in state_dict(model).items()}
    tensors.update(model.schedule.buffers())
    positions = tensors[_TOWER + "vision_model.embeddings.position_embedding.weight"].shape[0]
    tensors[_POSITION_IDS] = torch.arange(positions)[None]
    part = path.with_name(path.name + ".part")
    torch.save({"state_dict": tensors}, part)
    os.replace(part, path)


def save_diffusers(
    path: str | Path, model: PaintByExample, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the folder that diffusers' `PaintByExamplePipeline.from_pretrained` loads.

    Appears whole or not at all.

    Raises:
        ValueError: There is something at `path`, or diffusers cannot have the architecture.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} is there already; choose a new folder, or remove it")
    files = diffusers_configs(model.config)
    tensors = to_diffusers(state_dict(model), model.config)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.part") as scratch:
        folder = Path(scratch) / path.name
        for name, values in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        for part, file in FOLDERS.items():
            prefix = f"{part}."
            own = {
                name.removeprefix(prefix): tensor.detach().to("cpu", dtype).contiguous()
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            save_file(own, folder / part / file, metadata={"format": "pt"})
        os.replace(folder, path)


def convert(
    source: str | Path, out: str | Path, *, layout: Layout, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Write a checkpoint in another layout.

    Args:
        source: Whatever `read` reads; it has to be complete.
        out: File, or for diffusers folder, to write; its parent exists.
        layout: Ours (`"safetensors"`), the published file's (`"official"`) or `"diffusers"`.
        dtype: Type of the weights in it.

    Returns:
        What was read: what it dropped, and what it says of itself.

    Raises:
        ValueError: As `PaintByExample.from_checkpoint`, or a layout that cannot hold the model.
    """
    file = read(source)
    model = _assemble(file)
    if layout == "official":
        save_official(out, model, dtype=dtype)
    elif layout == "diffusers":
        save_diffusers(out, model, dtype=dtype)
    else:
        own = {k: v for k, v in file.metadata.items() if k not in _OURS}
        save_model(out, model, dtype=dtype, metadata=own)
    return file


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def inspect(path: str | Path) -> Report:
    """Describe a checkpoint without building the model's weights.

    Raises:
        ValueError: No such file, damaged, or another architecture.
    """
    file = read(path)
    try:
        config = infer_config(file.tensors, file.metadata)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    expected = _expected(config)
    return Report(
        path=file.path,
        format=file.format,
        config=config,
        size=_bytes(file.path),
        parameters=sum(t.numel() for t in file.tensors.values()),
        dtypes=sorted({str(t.dtype).removeprefix("torch.") for t in file.tensors.values()}),
        missing=[n for n in expected if n not in file.tensors],
        unexpected=[n for n in file.tensors if n not in expected],
        dropped=file.dropped,
        metadata={k: v for k, v in file.metadata.items() if k not in _OURS},
    )
