"""Adapters of every kind on our MODEL, by the host's loader and by the package's, side by side.

Runs inside the host's interpreter, see `checks.py`; its results are those of `adapter_checks`.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from adapter_checks import TINY, adapter, ours, run  # starts the host's modules

# isort: split
import comfy.latent_formats
import comfy.sd
import comfy.utils
import torch
from comfy.weight_adapter import base
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

lora = ours("pbe_model.checkpoints.adapter_apply")
names = ours("pbe_model.checkpoints.adapter_names")
convert = ours("pbe_model.checkpoints.adapter_convert")
STRENGTH = 0.7

Files = dict[str, Tensor]
Halves = Callable[[str, Tensor], Files]


class Parts:
    """A tiny model, plain and as a MODEL, and a place for files."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.plain = ours("pbe_model.model").PaintByExample(TINY).eval().requires_grad_(False)
        for parameter in self.plain.parameters():
            if parameter.ndim < 2:  # biases and normalisations, which begin at 0 or 1
                parameter.data += 0.1 * torch.randn_like(parameter)
        weights = copy.deepcopy(self.plain.unet.state_dict())
        self.model = adapter.load_model(TINY, weights, comfy.latent_formats.SD15())
        self.folder = Path(tempfile.mkdtemp())

    def layers(self, *kinds: type[nn.Module]) -> Iterator[tuple[str, str, nn.Module]]:
        """Path, kohya's name and module of the denoiser's layers."""
        found = {n: m for n, m in lora.changeable(self.plain).items() if n.startswith("unet.")}
        for path, name in names.names_in_file(found, TINY).items():
            if isinstance(found[path], kinds or (nn.Linear, nn.Conv2d)):
                yield path, name, found[path]

    def by_the_host(self, path: Path):
        """The MODEL with an adapter as the host's loader reads it."""
        loaded = comfy.utils.load_torch_file(str(path), safe_load=True)
        return comfy.sd.load_lora_for_models(self.model, None, loaded, STRENGTH, 0)[0]

    def by_our_node(self, path: Path):
        """The same as Load LoRA (Paint by Example) does it."""
        found = convert.read_as_kohya(path)
        patched, layers, unknown = adapter.with_adapter(self.model, found.tensors, STRENGTH)
        assert (layers, unknown) == (found.layers, [])
        return patched

    def agree(
        self, tensors: Files, expected: int, tolerance: float = 1e-5, ours_alone: bool = False
    ) -> None:
        """Check that package, node and, unless told, the host make the same weights of a file."""
        path = self.folder / "adapter_model.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
        for load in (self.by_our_node,) if ours_alone else (self.by_our_node, self.by_the_host):
            self.agrees(load(path), path, expected, tolerance)

    def agrees(self, patched, path: Path, expected: int, tolerance: float) -> None:
        theirs = adapter.denoiser_weights(patched)
        mine = copy.deepcopy(self.plain)
        applied = lora.apply_lora(mine, path, STRENGTH)
        assert applied.complete and len(applied.layers) == expected, (applied, expected)
        before, changes = self.plain.unet.state_dict(), 0
        for name, tensor in mine.unet.state_dict().items():
            error = (theirs[name].make() - tensor).abs().max() / tensor.abs().max()
            assert error < tolerance, (name, error)
            changes += not torch.equal(tensor, before[name])
        assert changes >= expected


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def halves(name: str, weight: Tensor, rank: int = 3) -> Files:
    rows, *columns = weight.shape
    return {
        f"{name}.lora_up.weight": rand(rows, rank, *(1 for _ in columns[1:])),
        f"{name}.lora_down.weight": rand(rank, *columns),
        f"{name}.alpha": torch.tensor(2.0),
    }


def tucker(name: str, weight: Tensor) -> Files:
    """LoCon's form of convolutions, and plain halves of the rest."""
    if weight.ndim == 2 or weight.shape[-1] == 1:
        return halves(name, weight)
    rows, columns, *sides = weight.shape
    return {
        f"{name}.lora_up.weight": rand(rows, 3, 1, 1),
        f"{name}.lora_mid.weight": rand(3, 3, *sides),
        f"{name}.lora_down.weight": rand(3, columns, 1, 1),
        f"{name}.alpha": torch.tensor(2.0),
    }


def loha(name: str, weight: Tensor) -> Files:
    rows, columns = weight.shape[0], weight[0].numel()
    return {
        f"{name}.hada_{w}_{h}": rand(rows, 3) if h == "a" else rand(3, columns)
        for w in ("w1", "w2")
        for h in "ab"
    } | {f"{name}.alpha": torch.tensor(2.0)}


def loha_with_cores(name: str, weight: Tensor) -> Files:
    if weight.ndim == 2 or weight.shape[-1] == 1:
        return loha(name, weight)
    rows, columns, *sides = weight.shape
    return {
        f"{name}.hada_{w}_{h}": rand(3, rows if h == "a" else columns)
        for w in ("w1", "w2")
        for h in "ab"
    } | {f"{name}.hada_t{i}": rand(3, 3, *sides) for i in (1, 2)} | {
        f"{name}.alpha": torch.tensor(2.0)
    }  # fmt: skip


def lokr(whole: bool, core: bool) -> Halves:
    def make(name: str, weight: Tensor) -> Files:
        rows, columns, *sides = weight.shape
        (a, c), (b, d) = base.factorization(rows, 4), base.factorization(columns, 3)
        conv = sides and sides[0] > 1
        if whole:
            return {f"{name}.lokr_w1": rand(a, b), f"{name}.lokr_w2": rand(c, d, *sides),
                    f"{name}.alpha": torch.tensor(2.0)}  # fmt: skip
        found = {f"{name}.lokr_w1_a": rand(a, 2), f"{name}.lokr_w1_b": rand(2, b),
                 f"{name}.alpha": torch.tensor(2.0)}  # fmt: skip
        if core and conv:
            return found | {f"{name}.lokr_w2_a": rand(2, c), f"{name}.lokr_w2_b": rand(2, d),
                            f"{name}.lokr_t2": rand(2, 2, *sides)}  # fmt: skip
        width = d * weight[0, 0].numel()
        return found | {f"{name}.lokr_w2_a": rand(c, 2), f"{name}.lokr_w2_b": rand(2, width)}

    return make


def of_every_layer(parts: Parts, make: Halves) -> Files:
    tensors: Files = {}
    for _, name, layer in parts.layers():
        tensors |= make(name, layer.weight)
    return tensors


def count(parts: Parts) -> int:
    return len(list(parts.layers()))


def check_lora(parts: Parts) -> None:
    parts.agree(of_every_layer(parts, halves), count(parts))


def check_locon_with_cores(parts: Parts) -> None:
    parts.agree(of_every_layer(parts, tucker), count(parts))


def check_loha(parts: Parts) -> None:
    parts.agree(of_every_layer(parts, loha), count(parts))


def check_loha_with_cores(parts: Parts) -> None:
    parts.agree(of_every_layer(parts, loha_with_cores), count(parts))


def check_lokr_of_whole_matrices(parts: Parts) -> None:
    parts.agree(of_every_layer(parts, lokr(whole=True, core=False)), count(parts))


def check_lokr_of_halves(parts: Parts) -> None:
    parts.agree(of_every_layer(parts, lokr(whole=False, core=False)), count(parts))


def check_lokr_with_cores_is_refused_and_can_be_converted(parts: Parts) -> None:
    tensors = of_every_layer(parts, lokr(whole=False, core=True))
    refused(parts, tensors, "a Kronecker product with cores")
    parts.agree(tensors, count(parts), ours_alone=True)
    parts.agree(converted(parts, tensors), count(parts))


def check_peft_s_names_are_refused_and_our_node_reads_them(parts: Parts) -> None:
    tensors: Files = {}
    for path, _, layer in parts.layers():
        name = f"base_model.model.{path.removeprefix('unet.')}"
        rows, *columns = layer.weight.shape
        tensors |= {f"{name}.lora_B.weight": rand(rows, 2, *(1 for _ in columns[1:])),
                    f"{name}.lora_A.weight": rand(2, *columns)}  # fmt: skip
    refused(parts, tensors, "this LoRA changes nothing")
    parts.agree(converted(parts, tensors), count(parts))
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    config = parts.folder / "adapter_config.json"
    config.write_text(json.dumps(stated))
    try:
        parts.agree(tensors, count(parts), ours_alone=True)
    finally:
        config.unlink()


def check_our_node_tells_what_the_model_does_not_have(parts: Parts) -> None:
    name, layer = next((name, layer) for _, name, layer in parts.layers(nn.Linear))
    own, other = halves(name, layer.weight), halves("lora_unet_mid_block_other", layer.weight)
    patched, layers, unknown = adapter.with_adapter(parts.model, own | other, 1.0)
    assert (layers, unknown) == (1, ["lora_unet_mid_block_other"]) and patched is not parts.model
    assert not parts.model.patches and patched.patches


def converted(parts: Parts, tensors: Files) -> Files:
    source, out = (parts.folder / f"{name}.safetensors" for name in ("source", "out"))
    save_file({n: t.contiguous() for n, t in tensors.items()}, source)
    convert.convert_adapter(source, out)
    return load_file(out)


def check_dora_by_columns(parts: Parts) -> None:
    """The form of LyCORIS' first versions; where both sides are one, rows are meant."""
    for make in (halves, loha, lokr(whole=False, core=False)):
        tensors: Files = {}
        for _, name, layer in parts.layers():
            columns = layer.weight.shape[1]
            scale = 1 + torch.rand(1, columns, *(1 for _ in layer.weight.shape[2:]))
            tensors |= make(name, layer.weight) | {f"{name}.dora_scale": scale}
        parts.agree(tensors, count(parts))


def check_differences_of_weights_biases_and_norms(parts: Parts) -> None:
    tensors: Files = {}
    layers = list(parts.layers(nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
    for _, name, layer in layers:
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            tensors[f"{name}.w_norm"] = rand(*layer.weight.shape)
            tensors[f"{name}.b_norm"] = rand(*layer.bias.shape)
        else:
            tensors[f"{name}.diff"] = rand(*layer.weight.shape)
            if layer.bias is not None:
                tensors[f"{name}.diff_b"] = rand(*layer.bias.shape)
    parts.agree(tensors, len(layers))


def check_all_names_that_the_host_knows(parts: Parts) -> None:
    """Official names with underscores and dots, LyCORIS' prefix, diffusers' processors."""
    layers = list(parts.layers(nn.Linear))
    for path, name, _ in layers:
        own = path.removeprefix("unet.")
        assert f"lora_unet_{own}".replace(".", "_") != name
    forms: dict[str, Callable[[str, str], str]] = {
        "official": lambda own, name: f"lora_unet_{own}".replace(".", "_"),
        "dots": lambda own, name: f"diffusion_model.{own}",
        "lycoris": lambda own, name: name.replace("lora_unet_", "lycoris_"),
    }
    for named in forms.values():
        tensors: Files = {}
        for path, name, layer in layers:
            tensors |= halves(named(path.removeprefix("unet."), name), layer.weight)
        parts.agree(tensors, len(layers))
    table = ours("pbe_model.checkpoints.diffusers_layout")
    tensors, attentions = {}, 0
    for path, _, layer in layers:
        (theirs,) = table.renamed("model.diffusion_" + path.replace("unet.", "model.", 1),
                                  table.module_table(TINY))  # fmt: skip
        if ".to_" in theirs:
            place = theirs.removesuffix(".0").replace(".to_", ".processor.to_")
            rows, columns = layer.weight.shape
            tensors |= {f"{place}_lora.up.weight": rand(rows, 2),
                        f"{place}_lora.down.weight": rand(2, columns)}  # fmt: skip
            attentions += 1
    parts.agree(tensors, attentions)


def refused(parts: Parts, tensors: Files, says: str) -> None:
    try:
        comfy.sd.load_lora_for_models(parts.model, None, tensors, STRENGTH, 0)
    except ValueError as error:
        assert says in str(error) and "\n" not in str(error), error
    else:
        raise AssertionError(f"not refused: {says}")


def check_what_changes_nothing_is_an_error(parts: Parts) -> None:
    for name in ("lora_unet_double_blocks_0_img_attn_qkv", "lora_te_text_model_encoder_layers_0"):
        refused(parts, halves(name, rand(8, 8)), "this LoRA changes nothing")
    refused(parts, {}, "this LoRA changes nothing")


def check_what_fits_no_layer_is_an_error(parts: Parts) -> None:
    _, name, layer = next(parts.layers())
    rows, columns = layer.weight.shape[:2]
    good = {
        n: t
        for _, other, m in list(parts.layers())[1:3]
        for n, t in halves(other, m.weight).items()
    }
    for make in (halves, loha, lokr(whole=True, core=False)):
        wrong = make(name, rand(2 * rows, columns))
        refused(parts, good | wrong, "1 of its 3 changes do not fit")
    refused(parts, {f"{name}.diff": rand(3)}, "1 of its 1 changes do not fit")
    assert not parts.model.patches


def results() -> dict[str, str | None]:
    return run(Parts, globals())
