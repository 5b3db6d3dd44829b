"""What is typed wrong, or is not there, is one line: the value, what was expected, the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_data import pictures

from mtl.cli.main import NAMES, main

WRONG = [
    ("adapt --data labelled", "name a network with --backbone, or a trained generator with --generator"),
    ("adapt --backbone mtl/glyphs --data ./nowhere", "--data ./nowhere: no such file or folder"),
    ("adapt --backbone mtl/glyphs --data labelled --unlabelled no", "--unlabelled no: no such file or folder"),
    ("adapt --backbone resnet18x --data labelled", "unknown timm model 'resnet18x'; nearest names: resnet18"),
    ("adapt --backbone mtl/glyph --data labelled", "mtl/glyph does not come with mtl; expected one of mtl/glyphs"),
    ("adapt --backbone mtl/glyphs --data labelled --out a.pt", "--out a.pt: expected a file that ends in .mtl"),
    ("adapt --backbone mtl/glyphs --data labelled --out there.mtl", "there.mtl is already there; remove it, or"),
    ("adapt --backbone mtl/glyphs --data labelled.csv", "labelled.csv"),
    ("adapt --backbone mtl/glyphs --data labelled --text-column a", "--text-column a: mtl/glyphs reads images"),
    ("adapt --generator no --data labelled", "no is not a saved learner"),
    ("adapt --generator g --data labelled --img-size 9", "--img-size 9 is about a network: name it with --backbone"),
    ("adapt --bakbone mtl/glyphs --data labelled", "--bakbone: no such option (did you mean --backbone?)"),
    ("adapt --backbone mtl/glyphs", "--data"),
    ("adapt --backbone b --data d --device cuda:99", "--device cuda:99: expected a device of this machine: cpu"),
    ("adapt --backbone b --data d --batch-size 0", "--batch-size 0: expected 1 or more"),
    ("adapt --generator g --data d --steps -1", "--steps -1: expected 0 or more"),
    ("adapt --backbone mtl/glyphs --data one --out o.mtl", "two at least"),
    ("predict new", "--task"),
    ("predict --task no.mtl new", "--task no.mtl: no such file or folder"),
    ("predict --task there.mtl nowhere", "nowhere: no such file or folder"),
    ("predict --task there.mtl new", "there.mtl is not an adapted task"),
    ("predict --task there.mtl new --reject 2", "--reject 2.0: expected a number from 0 to 1"),
    ("predict --task there.mtl new --top-k 0", "--top-k 0: expected 1 or more"),
    ("train --backbone mtl/glyphs --data ./nowhere", "--data ./nowhere: no such file or folder"),
    ("train --data labelled", "--data labelled: name the network that reads it with --backbone, such as resnet18"),
    ("train --tuning-epis 3", "--tuning-epis: no such option (did you mean --tuning-episodes?); --help lists them"),
    ("train --ways x", "--ways: invalid literal for int() with base 10: 'x'; --help lists the options"),
    ("train --ways", "Missing value for argument '--ways'"),
    ("train now", "now: expected no more words here"),
    ("train --text-column t", "--text-column t is about data of your own: name it with --data"),
    ("train --group-families 2", "--group-families 2 needs several --data or --label-columns, which it groups"),
    ("train --config no.yaml", "--config no.yaml: no such file"),
    ("train --config", "--config: expected a yaml or json file"),
    ("compare --data labelled", "--data labelled: name the network that reads it with --backbone"),
    ("compare --generator g --own-steps 3", "give either --generator or --own-steps"),
    ("compare --generator ./no", "--generator ./no: no such file or folder"),
    ("compare --own-steps -1", "--own-steps -1: expected 0 or more"),
    ("info resnet18x", "unknown timm model 'resnet18x'"),
    ("info labelled", "labelled: no adapted task (.mtl), generator or run is there"),
    ("info there.mtl", "there.mtl is not an adapted task"),
    ("plan --backbone resnet18 --ways 1", "ways=1: expected 2 or more"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_one_line(here: Path, capfd, line: str, said: str):
    (here / "there.mtl").write_text("something else, longer than a header")
    pictures(here / "one", 1, 2)
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 1
    answer = capfd.readouterr().err.strip()
    assert said in answer
    assert len(answer.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("trian", "(did you mean train?)"), ("xyz", f"(expected one of {', '.join(NAMES)})"),
     ("--verbose", "mtl --verbose: no such command")],
)  # fmt: skip
def test_a_command_that_there_is_not(capsys, name: str, said: str):
    with pytest.raises(SystemExit) as stopped:
        main([name])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
