"""`pbe batch`: the same pictures as `pbe edit`, after any end, by any number of processes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main
from pbe_model.image_io import read_note

from ... import forked
from ..small import small_model

RNG = np.random.default_rng(0)
HOLE = np.zeros((40, 50), np.uint8)
HOLE[10:20, 15:30] = 255
QUICK = ["--steps", "1", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder; what the edits are of lies in another one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    save_model("small.safetensors", small_model())
    for name, size in (("photo", (40, 50, 3)), ("other", (30, 24, 3)), ("exemplar", (20, 24, 3))):
        Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(f"set/{name}.png")
    Image.fromarray(HOLE).save("set/mask.png")
    return tmp_path


BASE = {"image": "photo.png", "mask": "mask.png", "exemplar": "exemplar.png"}


def write(*lines: dict | str) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("set/edits.jsonl").write_text("\n".join(texts) + "\n")
    return "set/edits.jsonl"


def batch(edits: str, *options: str, out: str = "out") -> int:
    return main(["batch", edits, "--out", out, "--checkpoint", "small.safetensors", *QUICK,
                 *options])  # fmt: skip


def pixels(path: str | Path) -> np.ndarray:
    return np.array(Image.open(path))


def names(out: str = "out") -> list[str]:
    return sorted(path.name for path in Path(out).iterdir())


def test_every_line_is_what_edit_paints(folder, capsys):
    options = [
        {},
        {"seed": 3, "sampler": "ddim", "out": "named.png"},
        {"image": "other.png", "similarity": 2, "exemplar_mask": "exemplar.png"},
        {"preset": "official", "steps": 2},
        {"paste_back": False, "num_images": 2},
    ]
    assert batch(write(*[BASE | line for line in options])) == 0
    made = ["00001.png", "00003.png", "00004.png", "00005-1.png", "00005-2.png", "named.png"]
    assert names() == made
    said = capsys.readouterr().out.splitlines()
    assert sorted(said[:-1]) == [f"out/{name}" for name in made]
    assert said[-1] == "out: 5 edits painted, 0 were there already, 0 failed"
    for i, line in enumerate(options, start=1):
        values = {"steps": 1, "out": f"{i:05d}.png"} | BASE | line
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()
                 if not isinstance(value, bool)]  # fmt: skip
        flags += ["--no-paste-back"] if "paste_back" in values else []
        os.chdir(folder / "set")
        assert main(["edit", "--checkpoint=../small.safetensors", "--device=cpu", *flags]) == 0
        os.chdir(folder)
        for name in names("set"):
            if name in made:
                assert (pixels(f"set/{name}") == pixels(f"out/{name}")).all()


def test_options_of_the_command_hold_where_a_line_says_nothing(folder):
    edits = write(BASE | {"similarity": 1}, BASE, BASE | {"preset": "official", "steps": 1})
    assert batch(edits, "--similarity", "4", "--seed", "7") == 0
    notes = [json.loads(read_note(f"out/0000{i}.png") or "") for i in (1, 2, 3)]
    assert [note["similarity"] for note in notes] == [1, 4, 5]
    assert [note["seed"] for note in notes] == [7, 7, 7]
    assert notes[2]["sampler"] == "plms" and notes[0]["image"] == "photo.png"


def test_what_is_there_is_not_painted_again(folder, capsys):
    edits = write(BASE, BASE | {"seed": 1})
    assert batch(edits) == 0
    before = {name: os.stat(f"out/{name}").st_mtime_ns for name in names()}
    capsys.readouterr()
    os.remove("small.safetensors")  # not even the model is needed
    assert batch(edits) == 0
    assert capsys.readouterr().out == "out: 0 edits painted, 2 were there already, 0 failed\n"
    assert {name: os.stat(f"out/{name}").st_mtime_ns for name in names()} == before


def test_a_result_of_another_edit_is_neither_kept_nor_overwritten(folder, capsys):
    assert batch(write(BASE, BASE)) == 0
    before = Path("out/00002.png").read_bytes()
    Image.fromarray(HOLE).save("out/00003.png")  # somebody's own
    assert batch(write(BASE, BASE | {"seed": 9}, BASE)) == 1
    out, err = capsys.readouterr()
    assert out.endswith("out: 0 edits painted, 1 were there already, 2 failed\n")
    for line in (2, 3):
        assert (
            f"pbe: line {line}: out/0000{line}.png already exists and is not the result of" in err
        )
    assert Path("out/00002.png").read_bytes() == before
    assert (pixels("out/00003.png") == HOLE).all()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[1]", "is not a JSON object"),
        ({"image": "photo.png", "mask": "mask.png"}, "--exemplar"),
        (BASE | {"stepz": 3}, "no option 'stepz'; did you mean 'steps'?"),
        (BASE | {"step": 3}, "no option 'step'; did you mean 'steps'?"),
        (BASE | {"--steps": 3}, "no option '__steps'; did you mean 'steps'?"),
        (BASE | {"quux": 3}, "no option 'quux'; pbe edit --help"),
        (BASE | {"steps": "many"}, "'many'"),
        (BASE | {"steps": None}, "steps is null"),
        (BASE | {"steps": [3]}, "steps is [3]"),
        (BASE | {"steps": 0}, "steps is 0"),
        (BASE | {"image": "nowhere.png"}, "set/nowhere.png"),
        (BASE | {"exemplar": "edits.jsonl"}, "not a picture"),
        (BASE | {"sampler": "heun"}, "'heun'"),
        (
            BASE | {"checkpoint": "x.ckpt"},
            "'checkpoint' is the same for all lines; give --checkpoint",
        ),
        (BASE | {"out": "../x.png"}, "out is '../x.png'"),
        (BASE | {"out": "x.jpg"}, "out is 'x.jpg'"),
        (BASE | {"out": "a" * 256 + ".png"}, "give a plain, short name"),
        (BASE | {"out": "ü" * 120 + ".png"}, "give a plain, short name"),
        (BASE | {"out": "c:x.png"}, "give a plain, short name"),
        (BASE | {"image": "a" * 256 + ".png"}, "too long"),
        (BASE | {"image": "."}, "it is a folder"),
        (BASE | {"image": 5}, "image is 5; give a string"),
        (BASE | {"mask": True}, "mask is true; give a string"),
        (BASE | {"steps": True}, "steps is true; give a number"),
        (BASE | {"steps": 2.5}, "'2.5'"),
        (BASE | {"steps": 10**9}, "steps is 1000000000; give a whole number from 1 to 10,000"),
        (BASE | {"num_images": 10**7}, "num_images is 10000000; give a whole number from 1 to"),
        (BASE | {"seed": 2**64}, f"seed is {2**64}; give a whole number from 0 to"),
        (BASE | {"similarity": float("nan")}, "similarity is nan"),
        (BASE | {"blend": float("inf")}, "blend is inf"),
        (BASE | {"strength": -float("inf")}, "strength is -inf"),
        (BASE | {"resolution": -64}, "resolution"),
        (BASE | {"colour_match": "yes"}, 'colour_match is "yes"; give true or false'),
        (BASE | {"truncate": 1}, "truncate is 1; give true or false"),
        (BASE | {"guidance_interval": [0.7, 0.2]}, "interval is 0.7 to 0.2"),
        (BASE | {"guidance_interval": [1, 2, 3]}, "guidance_interval is [1, 2, 3]; give a string"),
        (BASE | {"num-images": 1, "num_images": 1}, "'num_images' is given twice"),
        (json.dumps(BASE)[:-1] + ', "seed": 1, "seed": 2}', "'seed' is given twice"),
        ('{"image": ' + "[" * 50_000, "nested too deeply"),
        ('{"seed": ' + "9" * 5_000 + "}", "a number of thousands of digits"),
        (BASE | {"image": "a\u2028b.png"}, "set/a\\u2028b.png: there is no such file"),
        (BASE | {"region": "each", "paste_back": False}, "a picture for each hole"),
        (BASE | {"out": "00001.png"}, "is already the result of line 1"),
        (BASE | {"out": "00001.PNG"}, "give a plain, short name"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_line_is_reported_and_the_rest_is_painted(folder, capsys, line, sentence):
    assert batch(write(BASE, line, "", BASE)) == 1
    out, err = capsys.readouterr()
    [said] = [one for one in err.splitlines() if "pbe: " in one]
    assert said.startswith("pbe: line 2: ") and sentence in said
    assert names() == ["00001.png", "00004.png"]
    assert out.endswith("out: 2 edits painted, 0 were there already, 1 failed\n")


def test_names_that_some_system_takes_for_the_same_are_refused(folder, capsys):
    edits = write(BASE | {"out": "Größe.png"}, BASE | {"out": "GRO\u0308SSE.png"}, BASE)
    assert batch(edits) == 1
    assert "pbe: line 2: " in capsys.readouterr().err
    assert names() == ["00003.png", "Größe.png"]


def test_lines_as_any_editor_and_tool_leaves_them(folder):
    """A byte order mark, the line ends of Windows, separators of lines in names, whole floats."""
    name = "foto\u2028\u0085\x0b.png"
    shutil.copy("set/photo.png", f"set/{name}")
    odd = BASE | {"seed": 3.0, "guidance_interval": [0, 1], "num-images": "1"}
    raw = [json.dumps(line, ensure_ascii=False) for line in (BASE, BASE | {"image": name}, odd)]
    Path("set/edits.jsonl").write_bytes("\r\n".join(raw).encode("utf-8-sig"))
    assert batch("set/edits.jsonl") == 0
    assert names() == ["00001.png", "00002.png", "00003.png"]
    assert (pixels("out/00001.png") == pixels("out/00002.png")).all()
    assert json.loads(read_note("out/00003.png") or "")["seed"] == 3


def test_a_batch_without_a_good_line_says_so_and_makes_no_folder(folder, capsys):
    os.remove("small.safetensors")  # nothing is loaded
    assert batch(write("{", BASE | {"steps": 0})) == 1
    out, err = capsys.readouterr()
    assert out == "out: 0 edits painted, 0 were there already, 2 failed\n"
    assert "pbe: line 1: " in err and "pbe: line 2: steps is 0" in err
    assert not Path("out").exists()


def test_neither_inputs_nor_strangers_are_overwritten(folder, capsys):
    shutil.copytree("set", "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert batch(write(BASE | {"out": "photo.png"}, BASE | {"out": "mask.png"}), out="set") == 1
    assert capsys.readouterr().err.count("already exists and is not the result of this edit") == 2
    for name, content in before.items():
        assert Path("set", name).read_bytes() == content


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nowhere.jsonl", "--out", "out"], "nowhere.jsonl"),
        (["set/empty.jsonl", "--out", "out"], "is empty"),
        (["set/photo.png", "--out", "out"], "'set/photo.png' is not UTF-8"),
        (["set/edits.jsonl", "--out", "no/out"], "no/out"),
        (["set/edits.jsonl", "--out", "small.safetensors"], "small.safetensors"),
        (["set/edits.jsonl"], "--out"),
        (["set/edits.jsonl", "--out", "out", "--checkpoint", "no.ckpt"], "no.ckpt"),
        (["set/edits.jsonl", "--out", "out", "--device", "abacus"], "'abacus'"),
    ],
    ids=str,
)
def test_bad_commands(folder, capsys, argv, sentence):
    write(BASE)
    Path("set/empty.jsonl").write_text("\n\n")
    assert main(["batch", *argv]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("pbe: ") and sentence in err
    assert not list(folder.glob("out/*"))


def command(out: str) -> list[str]:
    return ["batch", "set/edits.jsonl", "--out", out, "--checkpoint", "small.safetensors",
            "--device", "cpu", "--steps", "8"]  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_without_redoing_or_losing_an_edit(folder):
    count = 24
    write(*[BASE | {"seed": i} for i in range(count)])
    first = forked.begin(main, command("out"))
    deadline = time.monotonic() + 600
    while len(list(folder.glob("out/*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.join()
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("out/[0-9]*.png")}
    assert 3 <= len(made) < count
    again = forked.run(main, command("out"))
    assert again.returncode == 0, again.stderr
    assert f"{count - len(made)} edits painted, {len(made)} were there" in again.stdout
    assert names() == [f"{i:05d}.png" for i in range(1, count + 1)]
    for name, changed in made.items():
        assert os.stat(f"out/{name}").st_mtime_ns == changed
    assert forked.run(main, command("whole")).returncode == 0
    for name in names():
        assert (pixels(f"out/{name}") == pixels(f"whole/{name}")).all()


@pytest.mark.long
def test_processes_share_the_lines_and_a_failed_one_stops_none(folder):
    write("{", *[BASE | {"seed": i} for i in range(7)])
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pbe_model"]
    done = subprocess.run(
        [sys.executable, *torchrun, *command("out")], capture_output=True, text=True
    )
    assert done.returncode == 1
    painted = [line for line in done.stdout.splitlines() if line.startswith("out/")]
    assert sorted(painted) == [f"out/{i:05d}.png" for i in range(2, 9)]  # each of them once
    assert "out: 7 edits painted, 0 were there already, 1 failed" in done.stdout
    assert done.stderr.count("pbe: line 1: ") == 1
    assert forked.run(main, command("alone")).returncode == 1
    for name in names():
        difference = pixels(f"out/{name}").astype(int) - pixels(f"alone/{name}")
        assert abs(difference).max() <= 1  # processes have other numbers of threads


def test_progress_tells_how_long_it_takes(folder, capsys):
    batch(write(BASE, BASE | {"seed": 1}))
    shown = capsys.readouterr().err.replace("\r", "\n")
    assert ("edits: 100%" in shown and "2/2 [" in shown and "s/edit" in shown) or "edit/s" in shown
