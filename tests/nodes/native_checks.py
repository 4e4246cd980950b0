"""Our MODEL beside the host's own SD 1.5, at full size, with the same random weights.

With zeros for the five channels of photo and mask our denoiser is Stable Diffusion's: whatever the
host does to a model - LoRA, ControlNet, other tokens, unloading, half the memory - has to come out
the same on both. Runs inside the host's interpreter, see `checks.py`; its results are those of
`adapter_checks`.
"""

from adapter_checks import adapter, close, ours, random_weights, run  # starts the host's modules

# isort: split
import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.sd
import torch

SIDE = 8  # of the latent
FIRST = "input_blocks.0.0.weight"
CPU = torch.device("cpu")


class Parts:
    """Both models, and what conditions them."""

    def __init__(self) -> None:
        V1 = ours("pbe_model.config").V1
        with torch.device("meta"):
            unet = ours("pbe_model.networks.unet").UNet(V1.unet)
        weights = random_weights({n: t.shape for n, t in unet.state_dict().items()}, seed=0)
        weights[FIRST][:, 4:] = 0
        self.ours = adapter.load_model(V1, dict(weights), comfy.latent_formats.SD15())
        weights[FIRST] = weights[FIRST][:, :4].clone()
        self.theirs = comfy.sd.load_diffusion_model_state_dict(weights)
        assert type(self.theirs.model).__name__ == "BaseModel", type(self.theirs.model)
        self.contexts = [torch.randn(1, 77, 768) for _ in range(2)]
        self.plain = self.latents(self.theirs)

    def latents(self, model, contexts=None, control=None) -> torch.Tensor:
        """A guided step from noise."""
        photo = {
            "concat_latent_image": torch.randn(1, 4, SIDE, SIDE),
            "concat_mask": torch.ones(1, 8 * SIDE, 8 * SIDE),
        }
        entries = dict(photo) if model.model is self.ours.model else {}
        if control is not None:
            entries |= {"control": control, "control_apply_to_uncond": True}
        conditions = [
            [[tokens, tag | entries] for tokens, tag in conditioning]
            for conditioning in adapter.tagged(*(contexts or self.contexts))
        ]
        noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        return comfy.sample.sample(
            model, noise, 1, 3.0, "euler", "normal", *conditions, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip


def differs(a: torch.Tensor, b: torch.Tensor) -> None:
    """By more than rounding."""
    assert (a - b).abs().max() > 1e-2 * b.abs().max()


def check_it_is_the_host_s_own(parts: Parts) -> None:
    close(parts.latents(parts.ours), parts.plain, 1e-4)


def check_one_token(parts: Parts) -> None:
    """Where our cross-attention takes its shortcut."""
    contexts = [context[:, :1] for context in parts.contexts]
    found = parts.latents(parts.ours, contexts)
    close(found, parts.latents(parts.theirs, contexts), 1e-4)
    differs(found, parts.plain)


def check_a_lora(parts: Parts) -> None:
    """In the names that trainers give it, on attention, feed-forward and convolution."""
    generator, lora = torch.Generator().manual_seed(5), {}
    for name, rows, columns in (
        ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320),
        ("mid_block_attentions_0_transformer_blocks_0_attn2_to_v", 1280, 768),
        ("up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj", 10240, 1280),
        ("down_blocks_1_attentions_1_proj_in", 640, 640),
    ):
        shape = (1, 1) if name.endswith("proj_in") else ()
        up = torch.randn(rows, 4, *shape, generator=generator)
        down = torch.randn(4, columns, *shape, generator=generator) * columns**-0.5
        lora |= {f"lora_unet_{name}.lora_up.weight": up, f"lora_unet_{name}.lora_down.weight": down}
        lora[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    for contexts in (parts.contexts, [context[:, :1] for context in parts.contexts]):
        found, expected = (
            parts.latents(comfy.sd.load_lora_for_models(model, None, lora, 0.8, 0)[0], contexts)
            for model in (parts.ours, parts.theirs)
        )
        close(found, expected, 1e-4)
        differs(found, parts.latents(parts.theirs, contexts))
    close(parts.latents(parts.ours), parts.plain, 1e-4)  # the original is as it was


def check_a_control_net(parts: Parts) -> None:
    sizes = dict(parts.theirs.model.model_config.unet_config)
    for name in ("out_channels", "transformer_depth_output", "disable_unet_model_creation"):
        sizes.pop(name, None)
    with torch.device("meta"):
        net = comfy.cldm.cldm.ControlNet(**sizes, hint_channels=3)
    weights = random_weights({n: t.shape for n, t in net.state_dict().items()}, seed=7)
    control = comfy.controlnet.load_controlnet_state_dict(
        {f"control_model.{name}": tensor for name, tensor in weights.items()}
    )
    hint = torch.rand(1, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(2))
    found, expected = (
        parts.latents(model, control=control.copy().set_cond_hint(hint, 0.6, (0.0, 1.0)))
        for model in (parts.ours, parts.theirs)
    )
    close(found, expected, 1e-4)
    differs(found, parts.plain)


def check_unloaded_and_loaded_again(parts: Parts) -> None:
    comfy.model_management.unload_all_models()
    close(parts.latents(parts.ours), parts.plain, 1e-4)


def check_weights_that_stay_behind(parts: Parts) -> None:
    """As `--lowvram` does it: most weights are cast when their layer is called."""
    comfy.model_management.unload_all_models()
    parts.ours.load(CPU, lowvram_model_memory=100_000_000)
    lazy = [m for m in parts.ours.model.modules() if getattr(m, "comfy_cast_weights", False)]
    assert len(lazy) > 100, len(lazy)
    x, t = torch.randn(1, 9, SIDE, SIDE), torch.tensor([500.0])
    partly = parts.ours.model.diffusion_model(x, t, context=parts.contexts[0])
    parts.ours.unpatch_model(CPU)
    parts.ours.load(CPU)
    close(partly, parts.ours.model.diffusion_model(x, t, context=parts.contexts[0]), 1e-5)


def results() -> dict[str, str | None]:
    return run(Parts, globals())
