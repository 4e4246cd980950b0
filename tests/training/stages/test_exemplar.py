"""The exemplar tower alone: its start, its loss, its validation, and the file that it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pbe_model.checkpoints.load import read
from pbe_model.networks.exemplar_encoder import ExemplarEncoder, normalise
from training.config import RunConfig
from training.data.dataset import collate
from training.export import export
from training.loop import train
from training.planning.counting import count_flops
from training.planning.report import flops_per_sample
from training.preflight import check_start
from training.stages.diffusion import starting_model
from training.stages.exemplar import Exemplar, start_from_principal_components
from training.stages.loss import ExemplarLoss

from ..demo.pictures import write_objects
from ..runs import SMALL, changed, digest, newest, run_config, write_photos

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to compose, and photos for the stage after this one."""
    return write_photos(write_objects(tmp_path_factory.mktemp("set"), held_out=2))


def config_of(root: Path, out: Path, first_stage: Path, **options) -> RunConfig:
    options = {"data.source": "composites", "loss.thumbnail_side": 4, **options}
    return run_config(root, out, first_stage, stage="exemplar", train_tower=True, **options)


def one_patch(width: int = 64) -> ExemplarEncoder:
    sizes = replace(SMALL.exemplar, patch_size=SMALL.exemplar.image_size, hidden_size=width)
    return ExemplarEncoder(sizes, 16)


def test_a_tower_of_one_patch_starts_with_what_varies_most() -> None:
    torch.manual_seed(0)
    sources = torch.rand(3, 3, 16, 16)  # what exemplars are mixed of, the first one mostly
    exemplars = torch.einsum(
        "nk,kchw->nchw", torch.rand(200, 3) * torch.tensor([1, 0.3, 0.1]), sources
    )
    exemplars = exemplars + 0.001 * torch.rand_like(exemplars)
    encoder = one_patch(8 * 8)
    start_from_principal_components(encoder, exemplars)
    tower = encoder.cond_stage_model.transformer
    patch = getattr(tower, "vision_model", tower).embeddings.patch_embedding
    with torch.no_grad():
        seen = patch(normalise(exemplars)).flatten(1)
    deviations = seen.std(dim=0)
    assert deviations[0] == deviations.max() and deviations[:3].min() > 3 * deviations[3:].max()
    correlations = torch.corrcoef(seen[:, :3].T) - torch.eye(3)
    assert correlations.abs().max() < 0.01
    pixels = normalise(exemplars).flatten(1)
    centred, rest = pixels - pixels.mean(0), seen[:, :3] - seen[:, :3].mean(0)
    unexplained = centred - rest @ torch.linalg.lstsq(rest, centred).solution
    assert unexplained.square().sum() < 1e-3 * centred.square().sum()


def test_the_loss_is_the_error_of_thumbnail_and_silhouette() -> None:
    torch.manual_seed(0)
    loss = ExemplarLoss(one_patch(), side=4)
    exemplar, silhouette = torch.rand(2, 3, 16, 16), (torch.rand(2, 1, 16, 16) > 0.5).float()
    found = loss({"exemplar": exemplar, "silhouette": silhouette})
    drawn = loss.thumbnail(loss.encoder(normalise(exemplar))[:, 0]).unflatten(1, (4, 4, 4))
    before_grey = exemplar * silhouette + 0.5 * (1 - silhouette)
    blocks = before_grey.unflatten(2, (4, 4)).unflatten(4, (4, 4)).mean((3, 5)) * 2 - 1
    colour = (drawn[:, :3] - blocks).square().mean()
    outline = silhouette.unflatten(2, (4, 4)).unflatten(4, (4, 4)).mean((3, 5))
    other = (drawn[:, 3:] - outline).square().mean()
    torch.testing.assert_close(found["colour_mse"], colour)
    torch.testing.assert_close(found["silhouette_mse"], other)
    torch.testing.assert_close(found["loss"], (3 * colour + other) / 4)


def test_validation_is_of_objects_never_trained_on(
    root: Path, tmp_path: Path, first_stage: Path
) -> None:
    stage = Exemplar(config_of(root, tmp_path / "run", first_stage), CPU)
    assert stage.validate() == stage.validate()
    batch = stage._validation(32)
    trained = stage.batch(collate([stage.dataset[number] for number in range(32)]))
    assert batch["exemplar"].shape == trained["exemplar"].shape == (32, 3, 16, 16)
    assert not torch.equal(batch["exemplar"], trained["exemplar"])
    found = stage.pictures()
    assert found.images.shape == (80, 3, 16, 16) and len(found.titles) == 10
    assert torch.equal(found.images[5], stage._validation(16)["exemplar"][1] * 2 - 1)


def test_a_run_teaches_the_tower_and_goes_on_where_it_stopped(
    root: Path, tmp_path: Path, first_stage: Path
) -> None:
    options = {"checkpoint.every": 20, "log.sample_every": 20, "batch_size": 16}
    options |= {"optim.name": "training.optim.muon.Muon", "optim.lr": 3e-3}
    whole = config_of(root, tmp_path / "whole", first_stage, steps=40, **options)
    parts = config_of(root, tmp_path / "parts", first_stage, steps=20, **options)
    check_start(whole)
    train(whole)
    train(parts)
    train(changed(parts, steps=40))
    assert digest(whole.out) == digest(parts.out)
    start, end = Exemplar(whole, CPU).validate(), newest(whole.out)["figures"]
    assert end["val_colour_mse"] < 0.8 * start["val_colour_mse"]


def test_the_second_stage_starts_from_what_it_exports(
    root: Path, tmp_path: Path, first_stage: Path
) -> None:
    run = config_of(root, tmp_path / "run", first_stage, steps=2)
    loss = train(run)
    path = tmp_path / "model.safetensors"
    export(run.out, path)
    names = read(path).tensors.keys()
    assert {name.partition(".")[0] for name in names} == {
        "first_stage_model", "cond_stage_model", "proj_out", "learnable_vector",
    }  # fmt: skip
    options = {"loss.prediction": "v", "loss.zero_terminal_snr": True}
    second = run_config(root, tmp_path / "second", path, train_tower=False, **options)
    model = starting_model(second)
    trained = dict(loss.named_parameters())
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(parameter, trained[f"encoder.{name}"]), name
    check_start(second)
    train(second)

    going_on = config_of(root, tmp_path / "on", path)
    stage = Exemplar(going_on, CPU)
    for name, parameter in stage.module.encoder.named_parameters():
        assert torch.equal(parameter, trained[f"encoder.{name}"]), name
    for layout in ("official", "diffusers"):
        with pytest.raises(ValueError, match=f"an exemplar encoder alone has no {layout} layout"):
            export(run.out, tmp_path / "other.ckpt", layout=layout)


def test_its_cost_is_counted(root: Path, tmp_path: Path, first_stage: Path) -> None:
    config = config_of(root, tmp_path / "run", first_stage)
    parts = count_flops(config, SMALL)
    assert set(parts) == {"image tower", "mapper"} and all(b > f for f, b in parts.values())
    assert flops_per_sample(config) == sum(f + b for f, b in parts.values())


def test_photos_have_no_silhouettes(root: Path, tmp_path: Path, first_stage: Path) -> None:
    with pytest.raises(ValueError, match=r"learns from cut-outs.*set data.source"):
        config_of(root, tmp_path / "run", first_stage, **{"data.source": "index"})
