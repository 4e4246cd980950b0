"""README and docs: their commands run, and the flags, entries, files and names in them exist.

Blocks of code are told apart by their language:

* `sh` is run, statement by statement, in a folder that looks like a checkout. What cannot run here
  is listed in `NOT_RUN` with a reason, and is still parsed.
* `python` is executed, `toml` is loaded as a configuration of training.
* `text` is a synopsis: the command must know every flag and every choice in it.

Inline code that begins with the name of a program is checked as a synopsis is. Inline code that
looks like a flag, an entry of a configuration, a path in this repository or a name in its packages
must exist. A command that none of this covers fails.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pbe_model.checkpoints.save import save_diffusers
from training.config import RunConfig, load_config

from .pbe_model.small import SMALL, small_model

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "pbe_model/assets/scenes"
FOLDERS = ("pbe_model", "training", "nodes", "tests", "benchmarks", "docs", "example_workflows")

# The guide first: what one page has run, the next need not run again.
PAGES = list(
    dict.fromkeys(
        ["docs/training.md"]
        + [
            str(path.relative_to(ROOT))
            for folder in (".", "docs", "benchmarks", "nodes/web/docs")
            for path in sorted((ROOT / folder).glob("*.md"))
        ]
    )
)

MODULES = {"pbe": "pbe_model", "pbe-train": "training"}
"""Commands of this repository, and what `python -m` calls them."""

SHELL = ("mkdir", "cp", "echo", "for")
"""What is run by bash."""

NOT_RUN = {
    r"make ": "sets up environments, runs every test; the targets are looked up",
    r"pip install ": "needs the network; the extras are looked up",
    r"python -m pytest ": "would run tests within a test; the files are looked up",
    r"git clone <this repository>": "needs an address, which the reader has",
    r"(cd|source) ": "changes the reader's shell",
    r"hf (download|auth) ": "needs the network",
    r"accelerate launch ": "the example of what does not work",
    r"(pbe|python -m pbe_model) download": "needs the network; see test_download.py",
    r"torchrun ": "needs several processes, a GPU or several machines",
    r"pbe-train (plan|train) (finetune|v1)": "needs a GPU and the published weights",
    r"pbe-train export runs/finetune ": "needs a run that needs a GPU",
    r"pbe-train prepare openimages ": "needs OpenImages; see test_prepare.py",
    r"pbe-train prepare demo ": "needs Debian packages; see test_demo_set.py",
    r"pbe-train (train|export|evaluate) (runs/)?(demo|bundled)"
    r"(-first-stage|-exemplar)?( |/|$)": "hours",
    r"pbe-train train demo-finetune --dry-run": "counts a plan again that has just been counted",
    r"pbe-train train mine\.toml ": "needs the published weights; the configuration is loaded",
    r"python -m benchmarks\.": "minutes; module and flags are looked up",
}
"""Beginnings of commands that are not run, and why not."""

SHORTER = {
    "pbe edit": ["--steps", "2"],
    "pbe batch": ["--steps", "2"],
    "pbe-train prepare masks": ["--processes", "1"],
    "pbe-train train demo-finetune": [
        *("--steps", "1", "--batch-size", "2", "--data.geometry-variants", "1"),
        *("--data.workers", "0", "--log.trackers"),
    ],
}
"""Arguments that are added to commands, so that they take seconds."""

REPLACED = {
    '("cuda")': '("cpu")',
    '"cuda"': '"cpu"',
    "torch.float16": "torch.float32",
    "(512, 512)": "(64, 64)",
    "num_inference_steps=50": "num_inference_steps=2",
    '**PRESETS["official"]': '**PRESETS["official"] | {"steps": 2}',
}
"""Words of `python` blocks, and what is executed in their place."""

FOREIGN = {
    "--lowvram": "ComfyUI",
    "--novram": "ComfyUI",
    **dict.fromkeys(
        ("--image_path", "--mask_path", "--reference_path", "--outdir", "--ckpt", "--config"),
        "the paper's scripts/inference.py",
    ),
    **dict.fromkeys(
        ("--plms", "--ddim_steps", "--scale", "--n_samples", "--H", "--W", "--ddim_eta"),
        "the paper's scripts/inference.py",
    ),
    "--precision": "the paper's scripts/inference.py, and a benchmark",
}
"""Flags that no command here has, and whose they are."""

PROGRAMS = (*MODULES, *SHELL, "accelerate", "apt-get", "cd", "conda", "docker", "git", "hf", "make",
            "npm", "pip", "python", "source", "torchrun")  # fmt: skip
"""First words that make inline code a command."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Page:
    """A page's parts.

    Attributes:
        blocks: Language and text of its blocks of code.
        prose: The rest.
        inline: The inline code in it, each on one line.
    """

    blocks: list[tuple[str, str]]
    prose: str
    inline: list[str]


def read(name: str) -> Page:
    text = (ROOT / name).read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return Page(FENCE.findall(text), prose, inline)


# ---- what commands know -------------------------------------------------------------------------


class Parsed(BaseException):
    """Thrown out of a command once it has made its parser."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`."""

    def caught(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(Parsed) as parsed:
            runpy.run_module(module, run_name="__main__")
    return parsed.value.args[0]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return groups[0].choices if groups else {}


def with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for one in subparsers(parser).values():
        yield from with_subparsers(one)


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Entries by dotted names, groups of entries as well."""
    found = {}
    for name, value in values.items():
        found[prefix + name] = value
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
    return found


PARSERS = {program: parser_of(module) for program, module in MODULES.items()}
ENTRIES = flat(RunConfig().model_dump())
GROUPS = tuple(name for name, value in RunConfig().model_dump().items() if isinstance(value, dict))
ASKING = ("--dry-run", "--help")
CONFIGURED = ("pbe-train train", "pbe-train plan")
"""Commands that take entries of a configuration as flags."""


# ---- how commands are written -------------------------------------------------------------------


def own_words(words: list[str]) -> list[str]:
    """`python -m pbe_model ...` as `pbe ...`, and so what torchrun starts."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(words[1:])
        assert args.module, f"not a module: {words}"
        words = ["python", "-m", args.training_script, *args.training_script_args]
    for program, module in MODULES.items():
        if words[:3] == ["python", "-m", module]:
            return [program, *words[3:]]
    return words


def is_placeholder(word: str) -> bool:
    return re.fullmatch(r"[A-Z]+(\.\w+)?", word) is not None


def variants(synopsis: str) -> list[list[str]]:
    """Its words without the brackets of options, as many times as a word has alternatives."""
    synopsis = re.sub(r"\[:[A-Z]+\]", "", synopsis)
    synopsis = re.sub(r"\[(?=-)|(?<=\S)\](?= |$)", "", synopsis)
    words = [word.split("|") for word in shlex.split(synopsis, comments=True)]
    most = max(len(word) for word in words)
    return [[word[min(i, len(word) - 1)] for word in words] for i in range(most)]


def statements(block: str) -> list[str]:
    """Of a shell's block: a line each, a loop as a whole."""
    lines, found = block.replace("\\\n", " ").splitlines(), []
    while lines:
        line = lines.pop(0)
        if line.startswith("for "):
            while not line.endswith("done"):
                line += "\n" + lines.pop(0)
        else:
            line = re.sub(r"(^|\s+)#\s.*", "", line).strip()
        if line:
            found.append(line)
    return found


# ---- checks -------------------------------------------------------------------------------------


def check_flags(parsers: list[argparse.ArgumentParser], words: list[str]) -> None:
    """That one of the parsers knows each flag, and the choice after it."""
    for flag, value in zip(words, [*words[1:], "--"], strict=False):
        if not flag.startswith("--") or flag in ("--help", *FOREIGN):
            continue
        actions = [found for p in parsers if (found := p._option_string_actions.get(flag))]
        if not actions:
            entry = flag.removeprefix("--").replace("-", "_")
            configured = any(parser.prog in CONFIGURED for parser in parsers)
            assert configured and (entry in ENTRIES or entry == "dry_run"), f"no flag {flag}"
        elif all(action.choices for action in actions) and value[:1] != "-":
            choices = {choice for action in actions for choice in action.choices or ()}
            assert value in choices or is_placeholder(value), f"{flag} {value}: not in {choices}"


def check_synopsis(words: list[str]) -> None:
    """That commands, flags and choices exist; arguments may be missing or in capitals."""
    parser, rest = PARSERS[words[0]], words[1:]
    while rest and (commands := subparsers(parser)):
        if is_placeholder(rest[0]):
            return
        assert rest[0] in commands, f"{parser.prog} has no command {rest[0]}"
        parser, rest = commands[rest[0]], rest[1:]
    check_flags([parser], rest)
    if parser.prog in CONFIGURED and rest and not is_placeholder(rest[0]):
        load_config(rest[0])


def check_arguments(words: list[str]) -> None:
    """That the command would accept these words as they are."""
    args = PARSERS[words[0]].parse_args(words[1:])
    check_synopsis(words)
    if words[:2] == ["pbe-train", "train"]:
        load_config(args.config, [word for word in args.overrides if word not in ASKING])


def check_surroundings(words: list[str]) -> None:
    """That what other programs are told about this repository is so."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in words[1:]:
            name, is_variable, _ = word.partition("=")
            wanted = rf"^{name} \??=" if is_variable else rf"^{name}:"
            assert re.search(wanted, makefile, re.M), f"the Makefile has no {name}"
    elif words[:2] == ["pip", "install"]:
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[2])
        assert extras, f"not this package: {words}"
        for extra in (extras[1] or "").split(","):
            assert not extra or f"\n{extra} = [" in project, f"there is no extra {extra}"
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:]), words
    elif words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        file = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
        source = file.read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words[3:] if word.startswith("--")), words


def check_command(line: str, written: str) -> bool:
    """Check a command without running it.

    Returns:
        Whether it is listed as one that is not run.
    """
    reason = next((pattern for pattern in NOT_RUN if re.match(pattern, line)), None)
    words = own_words(shlex.split(line))
    if words[0] in PARSERS:
        (check_arguments if written == "block" else check_synopsis)(words)
    else:
        assert reason, f"nothing covers {line!r}"
        check_surroundings(words)
    USED.add(reason)
    return reason is not None


USED: set[str | None] = set()
"""Of `NOT_RUN`."""


# ---- a reader's folder --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: what a checkout holds, and the pictures and weights of a reader."""
    folder = tmp_path_factory.mktemp("docs") / "checkout"
    for made in ("photos", "masks", "models"):
        (folder / made).mkdir(parents=True)
    for path in (*map(ROOT.joinpath, FOLDERS), *ROOT.glob("*.toml")):
        (folder / path.name).symlink_to(path)
    for scene in ("dune", "deck", "sky"):
        shutil.copy(SCENES / scene / "photo.jpg", folder / f"photos/{scene}.jpg")
        shutil.copy(SCENES / scene / "hole_mask.png", folder / f"masks/{scene}.png")
    for mine, scene in {"photo.jpg": "photo.jpg", "mask.png": "hole_mask.png"}.items():
        shutil.copy(SCENES / "dune" / scene, folder / mine)
    shutil.copy(SCENES / "deck/exemplar.jpg", folder)
    # In place of the published weights. Sides of 8 pixels a latent, as theirs.
    small = replace(SMALL, vae=replace(SMALL.vae, ch_mult=(1, 1, 1, 1)), resolution=64)
    published = folder / "models/Paint-by-Example"
    save_diffusers(published, small_model(small))
    index = json.loads((published / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # not fetched
    (published / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    threads, before = torch.get_num_threads(), os.getcwd()
    torch.set_num_threads(1)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Commands that have been run."""
    return set()


def run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command of ours in this process, as `python -m` does."""
    words = own_words(shlex.split(line))
    more = next((more for begun, more in SHORTER.items() if f"{line} ".startswith(f"{begun} ")), [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words, *([] if "--help" in words else more)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(MODULES[words[0]], run_name="__main__")
    printed = capsys.readouterr()
    assert not ended.value.code, f"{line}\n{printed.err[-2000:]}"


def run_shell(block: str, variables: dict[str, str], done: set[str], capsys) -> None:
    """Run or check the statements of a block; `variables` are those that the page has set."""
    for statement in statements(block):
        if match := re.fullmatch(r"(\w+)=(\S+)", statement):
            variables[match[1]] = match[2]
        elif statement.split()[0] in SHELL:
            subprocess.run(["bash", "-eu", "-c", statement], check=True)
        else:
            line = re.sub(r"\$(\w+)", lambda match: variables[match[1]], statement)
            if not check_command(line, "block") and line not in done:
                run(line, capsys)
                done.add(line)


@pytest.mark.parametrize("name", PAGES)
def test_blocks_of_code_run(name: str, checkout: Path, done: set[str], capsys) -> None:
    variables: dict[str, str] = {}
    for language, block in read(name).blocks:
        if language == "sh":
            run_shell(block, variables, done, capsys)
        elif language == "python":
            for word, instead in REPLACED.items():
                block = block.replace(word, instead)
            exec(compile(block, name, "exec"), {"__name__": "__main__"})
        elif language == "toml":
            file = Path(block.splitlines()[0].removeprefix("# "))
            file.write_text(block, encoding="utf-8")
            load_config(str(file))
        elif language == "text":
            for synopsis in re.sub(r"\n +", " ", block).splitlines():
                for words in variants(synopsis):
                    check_synopsis(words)
        else:
            assert language == "bibtex", f"nothing covers a block of {language!r}"


@pytest.mark.parametrize("name", PAGES)
def test_inline_commands_and_flags_exist(name: str) -> None:
    everything = [one for parser in PARSERS.values() for one in with_subparsers(parser)]
    for code in read(name).inline:
        if code.startswith("--"):
            for words in variants(code):
                check_flags(everything, words)
        elif " " in code and code.split()[0] in PROGRAMS:
            for words in variants(code):
                check_command(
                    shlex.join(words).replace("'<this' 'repository>'", "<this repository>"),
                    "inline",
                )


@pytest.mark.parametrize("name", PAGES)
def test_inline_names_exist(name: str) -> None:
    """Paths in this repository, names in its packages, entries of configurations."""
    for code in read(name).inline:
        entry, _, value = code.partition(" = ")
        if re.match(rf"({'|'.join(FOLDERS)})/[\w./*-]+$", code):
            assert list(ROOT.glob(code.rstrip("/"))), f"there is no {code}"
        elif re.match(r"(pbe_model|training)(\.\w+)+(\(.*\))?$", code):
            pkgutil.resolve_name(code.partition("(")[0])
        elif re.match(rf"({'|'.join(GROUPS)})\.[\w.]+$", entry) and code != "log.jsonl":
            assert entry in ENTRIES, f"there is no entry {entry}"
            if value and not is_placeholder(value):
                tree = json.loads(value)
                for part in reversed(entry.split(".")):
                    tree = {part: tree}
                RunConfig.model_validate(tree)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name).prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{target}: there is no such file"
        if anchor:
            prose = FENCE.sub("", file.read_text(encoding="utf-8"))
            headings = re.findall(r"^#+ (.+)$", prose, re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{target}: there is no such heading"
        elif file.suffix == ".jpg":
            with Image.open(file) as picture:
                picture.verify()


def test_all_nodes_and_workflows_are_listed() -> None:
    prose = read("docs/nodes.md").prose
    nodes = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert all(node["display_name"] in prose for node in nodes.values())
    workflows = re.findall(r"^\| `([\w.]+)` \|", prose, re.M)
    assert sorted(workflows) == sorted(p.stem for p in (ROOT / "example_workflows").glob("*.json"))


def test_all_configurations_are_listed() -> None:
    table = read("docs/training.md").prose.partition("| configuration |")[2].partition("\n\n")[0]
    listed = [
        name for row in table.splitlines() for name in re.findall(r"`(.+?)`", row.split("|")[1])
    ]
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "training/configs").glob("*.toml"))


def test_every_argument_of_diffusers_has_its_row() -> None:
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExamplePipeline as Pipeline

    prose = read("docs/from-diffusers.md").prose
    loading, calling = (
        {
            name
            for cell in re.findall(r"^\| ([^|]*)\|", part, re.M)
            for name in re.findall(r"\w+", cell)
        }
        for part in prose.partition("## `__call__`")[::2]
    )
    wanted = re.findall(r"^ {12}(\w+) ?\([^)]", Pipeline.from_pretrained.__doc__ or "", re.M)
    assert len(wanted) > 20 and {*wanted} - {"kwargs"} <= loading
    assert {*inspect.signature(Pipeline.__call__).parameters} - {"self"} <= calling


def test_every_reason_not_to_run_is_needed(request: pytest.FixtureRequest) -> None:
    if len([item for item in request.session.items if "code_run" in item.name]) < len(PAGES):
        pytest.skip("not all pages were read")
    assert set(NOT_RUN) <= USED
