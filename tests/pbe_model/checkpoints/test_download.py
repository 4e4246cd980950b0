"""`pbe download`, against a hub on this machine: no test reaches any other."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from functools import cache
from pathlib import Path

import huggingface_hub
import pytest
import torch

from pbe_model import PaintByExample
from pbe_model.checkpoints import download
from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import state_dict
from pbe_model.checkpoints.save import save_diffusers, save_official
from pbe_model.cli.main import main

from ..hub import COMMIT, Hub, serve
from ..small import SMALL, small_model

REPOSITORY = Path(__file__).parents[3]
UNET = "unet/diffusion_pytorch_model.safetensors"
NAME = "paint_by_example.safetensors"
PIECE = 2**16
CUT = 3 * PIECE


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A repository as the published one: both layouts, and what nobody needs."""
    folder = tmp_path_factory.mktemp("published") / "repo"
    save_diffusers(folder, small_model())
    save_official(folder / "model.ckpt", small_model())
    for extra in ("README.md", "unet/diffusion_pytorch_model.bin", "safety_checker/config.json"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not to be fetched")
    return folder


@pytest.fixture
def folder(published, tmp_path):
    """A copy of the repository, to be changed; links cost nothing."""
    shutil.copytree(published, tmp_path / "repo", copy_function=os.link)
    return tmp_path / "repo"


@pytest.fixture
def hub(folder, monkeypatch):
    with serve(Hub(folder)) as hub:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        # Ten megabytes otherwise; here a small file has to arrive in several pieces.
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
        yield hub


@pytest.fixture
def run(hub, tmp_path, capsys):
    """Runs the command with `--out` (a folder that is not there yet) and answers what it says."""

    def run(*options, code=0, out=tmp_path / "out"):
        argv = ["download", "--repo", hub.repo, *options]
        assert main(argv + (["--out", str(out)] if out else [])) == code
        said = capsys.readouterr()
        if code:
            sentence = said.err.splitlines()[-1]
            assert sentence.startswith("pbe: ")
            assert "Traceback" not in said.err
            return sentence
        return said.out

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def patient(monkeypatch):
    """The library waits a second before it tries again."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@cache
def weights(dtype):
    """Of the published model, after they were of this type."""
    return {n: tensor.to(dtype).float() for n, tensor in state_dict(small_model()).items()}


def assert_weights(path, dtype=torch.float32):
    expected = weights(dtype)
    found = state_dict(PaintByExample.from_checkpoint(path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def assert_published(hub, out):
    """All parts lie in their folder as they do in the repository, and nothing else does."""
    kept = out / "Paint-by-Example"
    unwanted = {"README.md", "model.ckpt", "unet/diffusion_pytorch_model.bin"}
    expected = set(hub.paths()) - unwanted - {"safety_checker/config.json"}
    assert set(files(kept)) == expected >= {"model_index.json", "scheduler/scheduler_config.json"}
    assert all((kept / p).read_bytes() == (hub.folder / p).read_bytes() for p in expected)
    assert [path.name for path in out.iterdir()] == ["Paint-by-Example"]


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# ---- what is fetched, and what is made of it ------------------------------------------------


@pytest.mark.parametrize("what", ["diffusers", "official", "model.ckpt"])
def test_one_file_in_half_precision_is_what_is_left(run, hub, out, what):
    said = run("--what", what)
    assert str(out / NAME) in said
    assert [path.name for path in out.iterdir()] == [NAME]
    assert_weights(out / NAME, torch.float16)
    parts = {UNET, "vae/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors"}
    fetched = {r.path for r in hub.requests if r.sent > 10_000}
    assert fetched == (parts if what == "diffusers" else {"model.ckpt"})


def test_full_precision_is_exact(run, out):
    run("--dtype", "fp32")
    assert_weights(out / NAME)


def test_as_published_the_folder_is_whole_for_diffusers(run, hub, out):
    run("--as-published")
    assert_published(hub, out)
    assert_weights(out / "Paint-by-Example")


def test_as_published_the_official_file_is_a_file(run, folder, out):
    run("--as-published", "--what", "official")
    assert files(out) == ["model.ckpt"]
    assert (out / "model.ckpt").read_bytes() == (folder / "model.ckpt").read_bytes()


def test_pickles_are_fetched_where_there_is_no_safer_file(run, folder, out):
    from safetensors.torch import load_file

    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").unlink()
    torch.save(tensors, folder / "unet/diffusion_pytorch_model.bin")
    run("--dtype", "fp32")
    assert_weights(out / NAME)


def test_shards_come_with_their_index():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = f"{UNET}.index.json"
    others = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert download._weights([*others, *shards, index], "unet") == [index, *shards]


def test_the_token_goes_to_the_hub_and_not_to_its_storage(run, hub):
    run("--as-published")
    large = [r for r in hub.requests if r.path == UNET]
    assert [(bool(r.token), r.sent > 0) for r in large] == [(True, False), (False, True)]


def test_the_commit_is_pinned(hub):
    release = download.look_up(repo=hub.repo, revision="main", endpoint=hub.url + "/")
    assert (release.commit, release.endpoint) == (COMMIT, hub.url)
    assert release.size == sum((hub.folder / file.path).stat().st_size for file in release.files)


# ---- where to -------------------------------------------------------------------------------


def test_comfyui_is_found_by_its_variable(run, hub, tmp_path, monkeypatch):
    (tmp_path / "ComfyUI/models").mkdir(parents=True)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    run(out=None)
    assert files(tmp_path / "ComfyUI") == [f"models/paint_by_example/{NAME}"]
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "elsewhere"))
    assert "has no folder models" in run(code=2, out=None)


def test_comfyui_is_found_around_the_pack(tmp_path, monkeypatch):
    module = tmp_path / "ComfyUI/custom_nodes/any-name/pbe_model/checkpoints/download.py"
    (tmp_path / "ComfyUI/models").mkdir(parents=True)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(download, "__file__", str(module))
    assert download.comfyui_folder() == tmp_path / "ComfyUI/models/paint_by_example"


def test_without_comfyui_a_folder_is_asked_for(run, hub, monkeypatch, tmp_path):
    monkeypatch.setattr(
        download, "__file__", str(tmp_path / "lib/pbe_model/checkpoints/download.py")
    )
    assert "--out" in run(code=2, out=None)
    assert hub.requests == []


def test_nothing_is_overwritten(run, hub, out):
    out.mkdir()
    (out / NAME).write_bytes(b"mine")
    assert "already exists" in run(code=2)
    assert (out / NAME).read_bytes() == b"mine"
    assert len(hub.requests) == 1  # for the list of files


# ---- interrupted ----------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_at_once(run, hub, out, patient):
    hub.cut_after[UNET] = CUT
    run("--as-published")
    first, second = hub.content(UNET)
    assert (first.range, first.sent) == (None, CUT)
    assert second.range == f"bytes={CUT}-"
    assert first.sent + second.sent == (hub.folder / UNET).stat().st_size
    assert_published(hub, out)


def test_the_next_run_asks_for_the_rest_only(run, hub, out, monkeypatch):
    hub.cut_after[UNET] = CUT

    def fail_after_the_cut(seconds):
        hub.refuse = (503, "")

    monkeypatch.setattr(time, "sleep", fail_after_the_cut)
    assert "status 503" in (sentence := run("--as-published", code=2))
    assert "it goes on where it stopped" in sentence
    assert [path.suffix for path in out.iterdir()] == [".download"]
    hub.refuse = None
    run("--as-published")
    assert_published(hub, out)
    assert [r.range for r in hub.content(UNET)] == [None, f"bytes={CUT}-"]
    # Everything was sent once: what was complete before the cut was not asked for again.
    for path in {r.path for r in hub.requests if r.sent}:
        assert sum(r.sent for r in hub.content(path)) == (hub.folder / path).stat().st_size, path


def test_a_changed_file_is_not_continued(run, hub, folder, out, monkeypatch):
    hub.cut_after[UNET] = CUT
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(hub, "refuse", (503, "")))
    run("--as-published", code=2)
    hub.refuse = None
    data = (folder / UNET).read_bytes()
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(data[:-4] + bytes(4))
    run("--as-published")
    assert [r.range for r in hub.content(UNET)] == [None, None]
    assert files(out / "Paint-by-Example/unet") == ["config.json", Path(UNET).name]


def test_ctrl_c_keeps_what_is_there(run, hub, out, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    hub.cut_after[UNET] = CUT
    monkeypatch.setattr(time, "sleep", interrupt)
    assert run("--as-published", code=130) == "pbe: interrupted"
    run("--as-published")
    assert [r.range for r in hub.content(UNET)] == [None, f"bytes={CUT}-"]


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_finishes(run, hub, folder, out, tmp_path):
    """The whole program, with pieces of ten megabytes as the library has them."""
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 10 * 2**20  # undone by the fixture
    (folder / "model.ckpt").unlink()
    states = torch.zeros(6 * 2**20)  # as in the published file the optimizer's lie beside them
    held = {
        "state_dict": state_dict(small_model()),
        METADATA_KEY: json.dumps(SMALL.to_dict()),
        "optimizer_states": [states],
    }
    torch.save(held, folder / "model.ckpt")
    size = (folder / "model.ckpt").stat().st_size
    hub.stall_after["model.ckpt"] = 12_000_000
    argv = ["download", "--repo", hub.repo, "--what", "official", "--out", str(out)]
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HF_ENDPOINT")},
        **{"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")},
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pbe_model", *argv], cwd=REPOSITORY, env=environment
    )
    try:
        assert hub.stalled.wait(60)
        deadline = time.monotonic() + 10
        while not [p for p in out.rglob("*.part") if p.stat().st_size == 10 * 2**20]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (out / NAME).exists()
    run("--what", "official", "--dtype", "fp32")
    assert [r.range for r in hub.content("model.ckpt")] == [None, f"bytes={10 * 2**20}-"]
    assert hub.content("model.ckpt")[1].sent == size - 10 * 2**20
    assert files(out) == [NAME]
    assert_weights(out / NAME)


# ---- what can be wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [UNET, "vae/config.json"])
def test_damaged_content_is_found_and_removed(run, hub, out, path):
    hub.corrupt.add(path)
    sentence = run("--as-published", code=2)
    assert path in sentence
    assert "damaged" in sentence
    assert not [name for name in files(out) if path in name]
    assert [path.suffix for path in out.iterdir()] == [".download"]
    hub.corrupt.clear()
    run("--as-published")
    assert_published(hub, out)


def test_a_damaged_file_of_an_earlier_run_is_fetched_again(run, hub, out):
    hub.corrupt.add("vae/diffusion_pytorch_model.safetensors")
    run("--as-published", code=2)
    (unet,) = out.rglob(f"*/{UNET}")
    unet.write_bytes(bytes(unet.stat().st_size))
    hub.corrupt.clear()
    run("--as-published")
    assert_published(hub, out)
    assert len(hub.content(UNET)) == 2


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, "RepoNotFound"), "no repository someone/Paint-by-Example that you may read"),
        ((401, ""), "no repository someone/Paint-by-Example that you may read"),
        ((403, "GatedRepo"), "is gated; accept its terms"),
        ((404, "RevisionNotFound"), "has no revision"),
        ((500, ""), "answered with status 500; wait a little"),
    ],
)
def test_refusals_of_the_hub(run, hub, out, answer, sentence):
    hub.refuse = answer
    assert sentence in run(code=2)
    assert not out.exists()


def test_content_may_be_gated_though_the_list_is_not(run, hub, out):
    hub.refuse_content = (403, "GatedRepo")
    assert "is gated; accept its terms" in run(code=2)
    assert not (out / NAME).exists()


def test_unknown_revision(run):
    assert "has no revision old; correct --revision" in run("--revision", "old", code=2)


def test_no_hub_there(run, monkeypatch, out):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the connection to http://127.0.0.1:9 failed" in run(code=2)
    assert not out.exists()


def test_offline_is_respected(run, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in run(code=2)
    assert hub.requests == []


def test_weights_that_are_not_there(run, folder):
    (folder / "model.ckpt").unlink()
    assert "has no model.ckpt; choose with --what among" in run("--what", "official", code=2)
    shutil.rmtree(folder / "image_encoder")
    sentence = run(code=2)
    assert "no image_encoder/config.json and no weights in image_encoder/" in sentence
    assert UNET in sentence


def test_no_space(run, hub, out, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    sentence = run(code=2)
    assert "0.0 GB free and 0.1 GB are needed" in sentence
    assert files(out) == []
    assert not [r for r in hub.requests if r.sent]


def test_a_disk_that_runs_full():
    """The system names no file then, and it must not be taken for the network."""
    with (
        pytest.raises(ValueError, match="cannot write the download: No space left"),
        download._sentences("someone/model", None, "http://hub"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_folder_to_make_it_in(run, tmp_path):
    assert "there is no folder" in run(code=2, out=tmp_path / "no" / "out")
    (tmp_path / "file").touch()
    assert "cannot make the folder" in run(code=2, out=tmp_path / "file")


def test_without_the_library(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sentence = "pbe: pbe download needs huggingface_hub: pip install huggingface_hub"
    assert run(code=2) == sentence
