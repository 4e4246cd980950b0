"""The machine for pickles: what it builds, and what it does not do."""

import pickle
import pickletools
import zipfile
from collections import OrderedDict, defaultdict

import pytest
import torch

from pbe_model.checkpoints import unpickle
from pbe_model.checkpoints.torch_file import load_tensors
from pbe_model.checkpoints.unpickle import Known, Machine, Storage, Stub, TensorRecord

START, STOP = b"\x80\x04", b"."
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def run(program: bytes, foreign: set[str] | None = None):
    return Machine(memoryview(program), 0, set() if foreign is None else foreign).run()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(protocol):
    value = {
        "a": [1, -1, 255, 256, 65536, 2**31, -(2**31), 2**40, -(2**60)],
        "b": (1.5, None, True, False, "", "ä\U0001f600", ()),
        3: {"nested": [[], {}, ((((1,),),),)]},
        0.25: (1, 2, 3, 4),
    }
    assert run(pickle.dumps(value, protocol)) == value


def test_every_instruction_of_these_protocols_is_known_or_refused_by_name():
    """So that a new one of Python's is noticed."""
    for opcode in pickletools.opcodes:
        program = START + opcode.code.encode("latin-1") + bytes(16) + STOP
        try:
            run(program)
        except ValueError as error:
            assert "its pickle" in str(error)


@pytest.mark.parametrize("name", ["INT", "LONG", "FLOAT", "STRING", "UNICODE", "GET", "PUT", "INST",
                                  "OBJ", "PERSID", "EXT1", "EXT2", "EXT4", "LONG4", "NEXT_BUFFER",
                                  "READONLY_BUFFER"])  # fmt: skip
def test_instructions_that_weights_do_not_need_are_refused(name):
    with pytest.raises(ValueError, match="which is not supported"):
        run(START + b"(" + getattr(pickle, name) + b"1\n1\n" + STOP)


def test_foreign_names_are_noted_and_imported_by_nobody():
    foreign: set[str] = set()
    result = run(START + b"cos\nsystem\n" + b"(" + text("touch owned") + b"tR" + STOP, foreign)
    assert isinstance(result, Stub) and foreign == {"os.system"}
    stacked = START + b"\x8c\x02os\x8c\x06system\x93)R}b" + STOP
    assert isinstance(run(stacked), Stub)


def test_a_stub_keeps_nothing():
    for program in (b"cx\nY\n)\x81}b", b"cx\nY\n)R(K\x01K\x02u", b"cx\nY\n)RK\x01a",
                    b"cx\nY\n)R(K\x01e", b"cx\nY\n)R(K\x01\x90", b"cx\nY\n)}\x92"):  # fmt: skip
        assert isinstance(run(START + program + STOP), Stub)
    assert not hasattr(Stub(), "__dict__")


def test_ordered_dictionaries_are_dictionaries():
    assert run(pickle.dumps(OrderedDict(a=1, b=2), 2)) == {"a": 1, "b": 2}
    assert isinstance(run(pickle.dumps(defaultdict(list, a=[1]), 2)), Stub)


def test_a_tensor_is_a_description():
    record = run(
        START + REBUILD + b"(" + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89}tR" + STOP
    )
    assert record == TensorRecord(Storage("0", "float16", 4), "float16", 0, (2, 2), (2, 1))


def test_torch_is_never_called(monkeypatch: pytest.MonkeyPatch):
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        monkeypatch.setattr(torch._utils, name, lambda *_: pytest.fail("called"))
    test_a_tensor_is_a_description()


REFUSED = {
    "a tuple as a key": (b"})Ns", "a tuple as a dictionary key"),
    "a tuple in a set": (b"\x8f()\x90", "a tuple as a dictionary key"),
    "a tuple in a frozen set": (b"()\x91", "a tuple as a dictionary key"),
    "a number of 80 digits as a key": (b"}\x8a\x20" + b"\x7f" * 32 + b"Ns", "an int as key|a int"),
    "a tuple as identity": (b"))\x86Q", "something that is not a storage"),
    "state for a tensor": (
        REBUILD + b"(" + STORAGE + b"K\x00)" + b")\x89}tR}b", "sets the state of something"),
    "state for a function": (REBUILD + b"}b", "sets the state of something"),
    "a function called with too little": (REBUILD + b")R", "arguments that it does not take"),
    "a function called with a list": (REBUILD + b"]R", "arguments that it does not take"),
    "a type of storage called": (b"ctorch\nHalfStorage\n)R", "arguments that it does not take"),
    "a dtype called": (b"ctorch\nfloat16\n)R", "arguments that it does not take"),
    "an object of a number": (b"K\x01)\x81", "something that is not a class"),
    "a size that is text": (
        REBUILD + b"(" + STORAGE + b"K\x00" + text("a") + b"\x85K\x01\x85\x89}tR", "whole numbers"),
    "sides without strides": (
        REBUILD + b"(" + STORAGE + b"K\x00K\x01\x85)\x89}tR", "1 sizes and 0 strides"),
    "appended to a dictionary": (b"}K\x01a", "something that is not a list"),
    "keys for a list": (b"]K\x01K\x02s", "something that is not a dictionary"),
    "nothing on the stack": (b"a", "damaged"),
    "nothing remembered": (b"h\x07", "damaged"),
    "no mark": (b"t", "damaged"),
    "an odd number of items": (b"}(K\x01u", "damaged"),
    "a text that is cut": (b"X\xff\x00\x00\x00a", "cut short"),
    "a long text": (b"X" + (2**20 + 1).to_bytes(4, "little") + b"a", "a string of 1,048,577 bytes"),
    "text that is not UTF-8": (b"X\x01\x00\x00\x00\xff", "utf-8"),
    "a long name": (b"c" + b"a" * 300 + b"\n", "too long"),
    "a place in memory far away": (b"}r" + (10**9).to_bytes(4, "little"), "remembers more than"),
    "an old protocol": (b"\x80\x01", "protocol 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_table_of_weights_does_is_refused(kind):
    program, reason = REFUSED[kind]
    with pytest.raises(ValueError, match=reason):
        run(START + program + STOP)


def test_steps_and_numbers_as_keys_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpickle, "MAX_STEPS", 20)
    with pytest.raises(ValueError, match="more than 20 steps"):
        run(START + b"]" * 30 + STOP)
    monkeypatch.undo()
    monkeypatch.setattr(unpickle, "MAX_NUMBERS", 3)
    with pytest.raises(ValueError, match="more than 3 numbers as keys"):
        run(pickle.dumps({1: 1, 2: 2, 3.5: 3, 4: 4}, 4))


def test_known_names_are_few():
    assert len(unpickle._KNOWN) == 33
    assert sum(isinstance(known, Known) for known in unpickle._KNOWN.values()) == 5


def saved_values() -> dict:
    """What torch saves in as many ways as weights come."""
    whole = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    unaligned = torch.arange(40, dtype=torch.uint8)[3:35]
    dtypes = ("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "bool")
    return {
        "state_dict": OrderedDict(
            whole=whole,
            tied=whole,
            view=whole[1:3, ::2],
            turned=whole.T,
            scalar=torch.tensor(2.5),
            empty=torch.empty(0, 3),
            bytes=unaligned,
            parameter=torch.nn.Parameter(whole[:2].clone()),
            **{dtype: (whole > 0).to(getattr(torch, dtype)) for dtype in dtypes},
        ),
        "optimizer": {0: {"step": 7, "exp_avg": whole + 1}, 1.5: [whole[0], (whole[1], None)]},
    }


def assert_same(ours, theirs):
    assert type(ours) is type(theirs) or isinstance(theirs, (OrderedDict, torch.nn.Parameter))
    if isinstance(theirs, torch.Tensor):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        raw, known = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (ours, theirs))
        assert torch.equal(raw, known)
    elif isinstance(theirs, dict):
        assert [*ours] == [*theirs]
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
def test_what_torch_saves_is_what_torch_loads(tmp_path, protocol):
    """With no protocol the file is as of before torch 1.6, in which torch cannot read 8 bits."""
    path, values = tmp_path / "good.ckpt", saved_values()
    if protocol is None:
        for name in ("float8_e4m3fn", "float8_e5m2"):
            del values["state_dict"][name]
        torch.save(values, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(values, path, pickle_protocol=protocol)
    loaded = load_tensors(path)
    assert_same(loaded, torch.load(path, weights_only=False))
    weights = loaded["state_dict"]
    assert weights["tied"].data_ptr() == weights["whole"].data_ptr()


def test_records_may_begin_anywhere(tmp_path):
    """Other programs' archives do not keep to multiples of 64 bytes."""
    path, known = tmp_path / "aligned.ckpt", tmp_path / "packed.ckpt"
    torch.save(saved_values(), path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(known, "w") as target:
        for name in source.namelist():
            with target.open("a" + name, "w", force_zip64=True) as record:
                record.write(source.read(name))
    assert_same(load_tensors(known), torch.load(path, weights_only=False))
