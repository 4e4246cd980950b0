"""Reading `.ckpt` files: foreign objects, files that are none, and no code that runs."""

import collections
import importlib.util
import io
import pickle
import random
import struct
import sys
import tarfile
import types
import warnings
import zipfile

import pytest
import torch

from pbe_model.checkpoints.torch_file import load_tensors
from pbe_model.checkpoints.unpickle import Stub

from ..hostile import Command
from ..small import noise

FOREIGN = """
import collections, enum
class Callback:
    def __init__(self): self.best, self.path = 1.5, "epoch=40"
class Slotted:
    __slots__ = ("a",)
    def __init__(self): self.a = [1, 2]
class Items(list): pass
class Table(dict): pass
class Bag(set): pass
class Made:
    def __new__(cls, a, *, b): return object.__new__(cls)
    def __getnewargs_ex__(self): return (1,), {"b": 2}
class Stateful:
    def __getstate__(self): return ("a", "tuple")
    def __setstate__(self, state): raise AssertionError("ran")
class Kind(enum.Enum):
    VALUE = 1
Pair = collections.namedtuple("Pair", "a b")
def function(): ...
"""


@pytest.fixture
def foreign(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with classes that pickle in every way; gone when `forget` is called."""
    path = tmp_path_factory.mktemp("foreign") / "vanished_lightning.py"
    path.write_text(FOREIGN)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.forget = lambda: sys.modules.pop(module.__name__)
    return module


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_are_inert_and_tensors_arrive(tmp_path, foreign, zipped):
    tensors = {
        "a": noise(3, 2),
        "view": noise(4, 4)[1:3, ::2],
        "half": noise(2).half(),
        "bfloat": noise(2).bfloat16(),
        "counts": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
    }
    made = foreign.Made(1, b=2)
    outer = {
        "state_dict": collections.OrderedDict(tensors, parameter=torch.nn.Parameter(noise(2))),
        "epoch": 40,
        "optimizer_states": [{"state": {0: {"exp_avg": noise(3, 2), "step": 7}}}],
        "callbacks": {foreign.Callback: foreign.Callback(), foreign.Kind.VALUE: foreign.Slotted()},
        "items": foreign.Items([1, foreign.Callback()]),
        "table": foreign.Table(a=foreign.Pair(1, 2)),
        "bag": foreign.Bag([1, 2]),
        "made": made,
        "stateful": foreign.Stateful(),
        "names": [foreign.function, torch.float16, torch.Size([1]), torch.device("cpu")],
        "set": {1, 2},
    }
    path = tmp_path / "official.ckpt"
    torch.save(outer, path, _use_new_zipfile_serialization=zipped)
    foreign.forget()

    loaded = load_tensors(path)
    assert loaded["epoch"] == 40
    assert set(loaded["state_dict"]) == {*tensors, "parameter"}
    for name, tensor in tensors.items():
        assert loaded["state_dict"][name].dtype == tensor.dtype
        assert torch.equal(loaded["state_dict"][name], tensor)
    assert torch.equal(loaded["state_dict"]["parameter"], outer["state_dict"]["parameter"])
    assert torch.equal(loaded["optimizer_states"][0]["state"][0]["exp_avg"], noise(3, 2))
    assert "vanished_lightning" not in sys.modules


@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_in_the_pickle_does_not_run(tmp_path, zipped):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    torch.save(
        {"state_dict": {"a": noise(2)}, "callbacks": Command(marker)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert torch.equal(load_tensors(path)["state_dict"]["a"], noise(2))
    assert not marker.exists()

    # The trap is real: the plain loader does run it.
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_does_not_run_either(tmp_path, protocol):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"a": Command(marker)}, protocol=protocol))
    with pytest.raises(ValueError, match="cannot be read"):
        load_tensors(path)
    assert not marker.exists()


def test_torch_script_is_refused_unrun(tmp_path):
    """`torch.load` would hand such an archive to `torch.jit.load`, round the unpickler."""
    path = tmp_path / "program.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        script = torch.jit.trace(torch.nn.Linear(2, 2), noise(1, 2))
        torch.jit.save(script, path)
    with pytest.raises(ValueError, match=r"program\.ckpt .*TorchScript"):
        load_tensors(path)


def test_a_tar_archive_is_refused_unpacked(tmp_path):
    path = tmp_path / "old.ckpt"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="tar archive"):
        load_tensors(path)


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "legacy"])
def whole_file(request, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    state = {f"layer.{i}": noise(5, 5, seed=i) for i in range(4)}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=request.param)
    return path.read_bytes()


def test_truncated_files_are_refused(tmp_path, whole_file):
    path = tmp_path / "cut.ckpt"
    for share in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99):
        path.write_bytes(whole_file[: int(share * len(whole_file))])
        with pytest.raises(ValueError, match=r"cut\.ckpt .*(damaged|not a dictionary)"):
            load_tensors(path)


def test_damaged_files_never_raise_anything_but_a_value_error(tmp_path, whole_file):
    """Bytes changed at random: a file loads, or is refused in one sentence."""
    rng, path, refused = random.Random(0), tmp_path / "damaged.ckpt", 0
    for _ in range(60):
        damaged = bytearray(whole_file)
        for _ in range(8):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_tensors(path)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"just a text\n" * 20,
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"<!DOCTYPE html><html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        pickle.dumps({"a": 1}),
        b"\x80\x02" + b"]" * 40 + b".",
        struct.pack("<Q", 10) + b'{"a": 1}  ',
    ],
    ids=["empty", "zip start", "text", "png", "html", "lfs", "pickle", "lists", "safetensors"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ckpt cannot be read"):
        load_tensors(path)


def test_another_zip_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"model\.ckpt cannot be read"):
        load_tensors(path)


@pytest.mark.parametrize("content", [noise(3), [noise(3)], "text"])
def test_a_file_without_a_dictionary_is_refused(tmp_path, content):
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"type {type(content).__name__}, not a dictionary"):
        load_tensors(path)


def test_a_whole_module_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="not a dictionary"):
        load_tensors(path)


def test_loading_imports_nothing(tmp_path, monkeypatch):
    """A name in the file must not even import its module: importing runs code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trap.py").write_text("open('sprung', 'w')\nclass Thing: ...\n")
    pickled = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01ctrap\nThing\nq\x02)\x81q\x03s."
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/version", "3\n")
    assert isinstance(load_tensors(path)["a"], Stub)
    assert "trap" not in sys.modules
    assert not (tmp_path / "sprung").exists()
