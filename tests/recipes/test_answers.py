"""Wrong options are refused before anything is read, loaded or written; what a person can act on is one line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import mtl
from mtl.cli.answers import answer, keeping, parse
from mtl.cli.options import Checked, Counts, Folder, Positive

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/x"  # folder
    shots: Counts = (1, 5)  # shots
    rate: Positive = 0.1  # rate


def ended(main: Callable[[Config], object], capfd, *args: str) -> tuple[int, str]:
    """Exit status and what stands on stderr."""
    with pytest.raises(SystemExit) as stopped:
        answer(main, Config, args)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, capfd.readouterr().err


def raises(error: BaseException) -> Callable[[Config], object]:
    def main(config: Config) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("ways=9: expected 5\nor fewer"), "ways=9: expected 5 or fewer"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv: No such file or directory"),
        (OSError(28, "x/y.csv could not be written: No space left"), "x/y.csv could not be written: No space left"),
        (KeyError("no column 'label' in a.csv"), "no column 'label' in a.csv"),
        (ImportError('needs peft: pip install "mtl[text]"'), 'needs peft: pip install "mtl[text]"'),
        (mtl.fewshot.NonFiniteLosses("no episode was finite"), "no episode was finite"),
        (MemoryError(), "MemoryError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_person_can_act_on_is_one_line(error, line, capfd):
    monkey = raises(error)
    code, said = ended(monkey, capfd)
    assert (code, said) == (1, f"{line}\n")
    with pytest.raises(type(error)):
        answer(monkey, Config, ["--traceback"])


def test_an_error_of_a_library_says_how_to_see_where(capfd):
    code, said = ended(lambda config: int("five"), capfd)
    assert "invalid literal for int()" in said
    code, said = ended(lambda config: importlib.import_module("json").loads("{"), capfd)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert said.endswith("(JSONDecodeError; --traceback shows where)\n")


@pytest.mark.parametrize("error", [TypeError("not callable"), AssertionError(), KeyError("scale"), RuntimeError("?")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        answer(raises(error), Config, [])
    assert raised.value is error


def test_notes_follow_on_lines_of_their_own(capfd):
    def main(config: Config) -> None:
        with keeping("step 200 is kept: the same command continues"):
            raise ValueError("the disk is full")

    assert ended(main, capfd) == (1, "the disk is full\nstep 200 is kept: the same command continues\n")


def test_ctrl_c_says_what_is_kept(capfd):
    def main(config: Config) -> None:
        with keeping("step 200 is kept: the same command continues"):
            raise KeyboardInterrupt

    assert ended(main, capfd) == (130, "stopped by Ctrl-C\nstep 200 is kept: the same command continues\n")


def test_of_several_processes_one_speaks(capfd, monkeypatch):
    monkeypatch.setattr("mtl.cli.answers.HEAD_START", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert ended(raises(KeyboardInterrupt()), capfd) == (130, "")
    assert ended(raises(ValueError("one image is broken")), capfd) == (1, "one image is broken\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--rate 0", "--rate 0.0: expected a number above 0"),
        ("--rate nan", "--rate nan: expected a number above 0"),
        ("--rate inf", "--rate inf: expected a number above 0"),
        ("--shots 0", "--shots 0: expected 1 or more"),
        ("--shots", "--shots '': expected at least one"),
        ("--shots 5 1 5", "--shots 5 1 5: expected each once, but 5 is there twice"),
        ("--shots -1 --rate -2", "--shots -1: expected 1 or more; --rate -2.0: expected a number above 0"),
        ("--out=", "--out '': expected a name"),
    ],
)
def test_ranges(line, said, capfd):
    assert ended(pytest.fail, capfd, *line.split()) == (1, f"{said}\n")


FEW_SHOT = [
    ("--ways 1", "--ways 1: expected 2 or more"),
    ("--shots 0", "--shots 0: expected 1 or more"),
    ("--shots", "--shots '': expected at least one"),
    ("--shots 1 1", "--shots 1 1: expected each once"),
    ("--queries 0", "--queries 0: expected 1 or more"),
    ("--steps -1", "--steps -1: expected 0 or more"),
    ("--warm-steps -1", "--warm-steps -1: expected 0 or more"),
    ("--warm-steps 0 --inner-steps 0", "no step to train"),
    ("--inner-steps -1", "--inner-steps -1: expected 0 or more"),
    ("--test-episodes 0", "--test-episodes 0: expected 2 or more"),
    ("--test-episodes 1", "--test-episodes 1: expected 2 or more"),
    ("--tuning-episodes 0", "--tuning-episodes 0: expected 1 or more"),
    ("--validation-tasks 0", "--validation-tasks 0: expected 1 or more"),
    ("--step-size 0", "--step-size 0.0: expected a number above 0"),
    ("--step-size nan", "--step-size nan: expected a number above 0"),
    ("--outer-lr -1e-3", "--outer-lr -0.001: expected a number above 0"),
    ("--gate nan", "--gate nan: expected 0 or more"),
    ("--tasks-per-step 0", "--tasks-per-step 0: expected 1 or more"),
    ("--tasks-per-chunk 0", "--tasks-per-chunk 0: expected 1 or more"),
    ("--kept-episodes 0", "--kept-episodes 0: expected 1 or more"),
    ("--last-k 0", "--last-k 0: expected 1 or more"),
    ("--last-k 1 --sites none", "--last-k 1 is about blocks that are modulated inside"),
    ("--img-size 0", "--img-size 0: expected 1 or more"),
    ("--seed -1", "--seed -1: expected a number from 0 to 4294967295"),
    ("--memory.lite-examples 0", "--memory.lite-examples 0: expected 1 or more"),
    ("--min-per-class 0", "--min-per-class 0: expected 1 or more"),
    ("--baselines rigde", "no baseline is called 'rigde': did you mean ridge"),
    ("--estimator first-order --window 3", "the estimator 'first-order' has no option window=3"),
    ("--estimator windowed --window 0", "window"),
    ("--generator code --gate 0.5", "--gate 0.5 is an option of --generator dense"),
    ("--label-columns kind", "--label-columns is about data of your own: name it with --data"),
    ("--data there", "--data there: name the network that reads it with --backbone, such as"),
]
OTHERS = [
    ("maml", "--device gpu", "--device gpu: expected a device of this machine: cpu"),
    ("compare_speed", "--device gpu", "--device gpu: expected a device of this machine: cpu"),
    ("meta_transfer", "--target resnet19", "--target resnet19: expected small, or a name out of timm.list_models()"),
    ("few_shot_vision", "--cache-dir c", "--cache-dir c keeps examples of --data"),
    (
        "few_shot_text",
        "--families modul",
        "--families modul: expected one of module, file, owner (did you mean module?)",
    ),
    ("few_shot_text", "--families", "--families '': expected at least one"),
    ("few_shot_text", "--data t.csv --backbone mtl/minilm --families file", "--families file is about the embedded"),
    ("few_shot_text", "--text-column note", "--text-column note is about data of your own"),
    ("few_shot_text", "--max-length 0", "--max-length 0: expected 1 or more"),
    ("maml", "--steps -1", "--steps -1: expected 1 or more"),
    ("maml", "--inner-lr nan", "--inner-lr nan: expected a number above 0"),
    ("maml", "--methods lazzy", "--methods lazzy: expected first words of some of exact; "),
    ("maml", "--inner-steps 2", "--window 5: expected at most --inner-steps 2"),
    ("meta_transfer", "--only lazy", "--only lazy: expected one of source, new head"),
    ("meta_transfer", "--inner-steps 7", "--inner-steps 7: expected multiples of --training.window 5"),
    ("meta_transfer", "--training.steps 0", "--training.steps 0: expected 1 or more"),
    ("meta_transfer", "--target-args {", "--target-args {: expected JSON"),
    ("meta_transfer", "--data photos", "--data photos: name the network to transfer from with --source"),
    ("meta_transfer", "--seeds 1 1", "--seeds 1 1: expected each once"),
    ("reweighting", "--noise 1.5", "--noise 1.5: expected a number from 0 to 1"),
    ("reweighting", "--training 1790", "--training 1790 and --clean 100: expected fewer than 1797 together"),
    ("train_universal", "", "nothing to train on: give --images or --texts"),
    ("train_universal", "--texts t.csv --keep-out x", "--keep-out x: expected some of the networks"),
    ("affinity", "", "name what to estimate affinities of: expected either --images or --texts"),
    ("affinity", "--texts t.csv --steps 0", "--steps 0: expected 1 or more"),
    ("compare_readouts", "", "expected either --images or --texts"),
    ("compare_readouts", "--images a", "mtl/smollm2 reads texts; name a network that reads images"),
    ("compare_readouts", "--texts a --baselines x", "no baseline is called 'x'"),
    ("compare_estimators", "--depth 0", "--depth 0: expected 1 or more"),
    ("compare_transfer_costs", "--only x", "--only x: expected one of exact, unrolled"),
    ("calibrate_planning", "--networks vitt", "(did you mean vit?)"),
    ("large_backbone", "--inner-steps 0", "--inner-steps 0: expected 1 or more"),
    ("assets.pretrain_scans", "--steps -3", "--steps -3: expected 1 or more"),
]


@pytest.mark.parametrize(
    ("recipe", "line", "said"),
    [(f"few_shot_{kind}", *case) for kind in ("vision", "text") for case in FEW_SHOT] + OTHERS,
)
def test_wrong_options_are_refused_at_the_start(recipe, line, said):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        parse(importlib.import_module(recipe).Config, line.split())
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("few_shot_vision.py", "--steps -1", "--steps -1: expected 0 or more"),
        ("few_shot_vision.py", "--data nowhere --backbone mtl/glyphs", "nowhere"),
        (
            "few_shot_vision.py",
            "--data ./nowhere --backbone mtl/efficientnet-lite9",
            "--data ./nowhere: no such file or folder",
        ),
        ("benchmarks/compare_speed.py", "--repeats 0", "--repeats 0: expected 1 or more"),
        ("assets/pretrain_docstrings.py", "--dropped 2", "--dropped 2.0: expected a number from 0 to 1"),
    ],
)
def test_a_command_answers_in_one_line(tmp_path, file, line, said):
    environment = os.environ | {"PYTHONPATH": str(RECIPES.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", str(RECIPES / file), *line.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("config.json"))
