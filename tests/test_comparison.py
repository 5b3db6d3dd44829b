"""Intervals and pairing against numbers worked out by hand; tables, files and figures against what was put in."""

import csv
import math
import re
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from mtl.tools.comparison import Comparison, MethodResult, Verdict, mean_interval, paired_difference, verdicts
from mtl.tools.figures import WRONG, accuracy_figure, curves_figure

FAMILIES = ("cells", "glyphs") * 4
# Per-episode differences to "ours": always 0.1; 0.1 on cells and -0.1 on glyphs; nothing.
OURS = np.array([0.5, 0.9, 0.6, 0.8, 0.5, 0.7, 0.4, 0.8])
SIGN = np.array([1, -1] * 4)


@pytest.fixture
def comparison() -> Comparison:
    rows = (
        MethodResult("ridge", "baseline", OURS - 0.1, 0.01, 0),
        MethodResult("LoRA | rank 4", "baseline", OURS - 0.1 * SIGN, 1.5, 36864),
        MethodResult("twin", "control", OURS, 0.25, 1000),
        MethodResult("ours", "ours", OURS, 0.25, 1000),
    )
    return Comparison("5-way 1-shot", FAMILIES, rows, "ours")


def test_mean_interval():
    # std of 0, 1, 0, 1 with ddof=1 is sqrt(1/3).
    assert mean_interval([0.0, 1.0, 0.0, 1.0]) == pytest.approx((0.5, 1.96 * math.sqrt(1 / 3) / 2))
    assert mean_interval(np.full(3, 0.25)) == (0.25, 0.0)


@pytest.mark.filterwarnings("error")
def test_mean_interval_of_too_few():
    assert mean_interval([0.3]) == pytest.approx((0.3, math.nan), nan_ok=True)
    assert all(map(math.isnan, mean_interval([])))


def test_paired_cancels_what_episodes_share():
    easy = np.linspace(0, 0.8, 9)
    mean, half = paired_difference(easy + 0.1, easy)
    assert mean == pytest.approx(0.1)
    assert half == pytest.approx(0, abs=1e-12)
    assert mean_interval(easy)[1] > 0.1
    # Differences 0.2, 0, 0.2, 0: std sqrt(0.04 / 3).
    assert paired_difference([0.7, 0.5, 0.9, 0.1], [0.5, 0.5, 0.7, 0.1]) == pytest.approx(
        (0.1, 1.96 * math.sqrt(0.04 / 3) / 2)
    )


def test_paired_needs_the_same_episodes():
    with pytest.raises(ValueError, match=r"\(3,\) with \(2,\)"):
        paired_difference(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": np.array([0.5, np.nan])}, "'ridge': 1 accuracies .* nan"),
        ({"accuracy": np.array([50.0, 60.0])}, "'ridge': 2 accuracies .* 50"),
        ({"accuracy": np.zeros((2, 2))}, r"'ridge'.*\(2, 2\)"),
        ({"accuracy": np.zeros(0)}, r"'ridge'.*\(0,\)"),
        ({"kind": "theirs"}, "'ridge': kind 'theirs'.*baseline, ours, control"),
        ({"seconds_per_task": math.nan}, "'ridge': seconds_per_task=nan"),
        ({"adapted_values": -1}, "'ridge': adapted_values=-1"),
    ],
)
def test_row_errors_name_the_method(change, message):
    with pytest.raises(ValueError, match=message):
        MethodResult(
            **{"method": "ridge", "kind": "baseline", "accuracy": OURS, "seconds_per_task": 1, "adapted_values": 0}
            | change
        )


def test_row_is_independent_of_the_array_it_was_made_from():
    mine = OURS.copy()
    row = MethodResult("ours", "ours", mine, 1, 0)
    mine[:] = 0
    assert row.accuracy.tolist() == OURS.tolist()
    with pytest.raises(ValueError, match="read-only"):
        row.accuracy[0] = 1


def test_comparison_errors_name_the_rows(comparison):
    short = replace(comparison.rows[1], accuracy=OURS[:3])
    with pytest.raises(ValueError, match=r"8 episodes .* 'LoRA \| rank 4' has 3 accuracies"):
        replace(comparison, rows=(comparison.rows[0], short))
    with pytest.raises(ValueError, match=r"reference 'theirs' is not one of .*'ridge'"):
        replace(comparison, reference="theirs")
    with pytest.raises(ValueError, match=r"its own name, got \['ours', 'ours'\]"):
        replace(comparison, rows=comparison.rows[-1:] * 2)
    with pytest.raises(ValueError, match="family cannot be called 'all'"):
        replace(comparison, families=("all", "cells") * 4)


def test_by_family_keeps_episodes_in_order(comparison):
    parts = comparison.by_family()
    assert list(parts) == ["cells", "glyphs"]
    assert parts["glyphs"].families == ("glyphs",) * 4
    assert parts["glyphs"].row("ours").accuracy.tolist() == OURS[1::2].tolist()
    assert list(comparison.parts()) == ["all", "cells", "glyphs"]
    assert list(parts["cells"].parts()) == ["all"]


def test_unseen_families_are_listed_apart(comparison, tmp_path):
    assert comparison.blocks() == replace(comparison, unseen=("cells", "glyphs")).blocks() == {}
    apart = replace(comparison, unseen=("glyphs", "others"))
    blocks = apart.blocks()
    assert {name: c.families for name, c in blocks.items()} == {
        "seen families": ("cells",) * 4,
        "unseen families": ("glyphs",) * 4,
    }
    assert blocks["unseen families"].verdict("LoRA | rank 4").difference == pytest.approx(-0.1)
    table = apart.table()
    assert table.index("1-shot, seen families, 4 episodes") < table.index("1-shot, unseen families, 4 episodes")
    assert "-10.00 ± 0.00 *" in table
    assert "+10.00 ± 0.00 *" in table
    assert re.search(r"glyphs \(unseen\) +70.0 ± ", apart.family_table())
    apart.to_csv(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as stream:
        written = [row["family"] for row in csv.DictReader(stream)]
    assert list(dict.fromkeys(written)) == ["all", "seen families", "unseen families", "cells", "glyphs"]
    apart.to_json(tmp_path / "c.json")
    assert Comparison.from_json(tmp_path / "c.json").unseen == ("glyphs", "others")


def test_verdicts(comparison):
    outcomes = {(v.method, v.family): v.outcome for v in verdicts(comparison)}
    families = ("all", "cells", "glyphs")
    assert outcomes == {
        **{("ridge", family): "wins" for family in families},
        **dict(zip([("LoRA | rank 4", family) for family in families], ("ties", "wins", "loses"), strict=True)),
        **{("twin", family): "ties" for family in families},
    }
    assert [v.family for v in verdicts(comparison, per_family=False)] == ["all"] * 3
    # LoRA: differences of +-0.1, four each, so std 0.1 sqrt(8/7).
    half = 1.96 * 0.1 * math.sqrt(8 / 7) / math.sqrt(8)
    lora = comparison.verdict("LoRA | rank 4")
    assert (lora.difference, lora.half_width) == pytest.approx((0, half), abs=1e-12)


def test_one_episode_decides_nothing():
    rows = tuple(MethodResult(name, "ours", np.array([x]), 1, 0) for name, x in (("a", 1.0), ("b", 0.0)))
    (verdict,) = verdicts(Comparison("one", ("cells",), rows, "a"))
    assert isinstance(verdict, Verdict)
    assert (verdict.difference, verdict.outcome) == (1.0, "ties")


def test_table(comparison):
    text = comparison.table()
    head, rule, *body = text.split("\n\n")[0].splitlines()
    assert re.split(r" {2,}", head)[:5] == ["method", "accuracy ± 95 %", "cells", "glyphs", "difference"]
    assert set(rule) == {"-", " "}
    ridge, lora, twin, ours = (re.split(r" {2,}", line) for line in body)
    assert ridge == ["ridge", "55.0 ± 12.3", "40.0 ± 8.0", "70.0 ± 8.0", "+10.00 ± 0.00 *", "0.01", "0"]
    assert (lora[2], lora[3], lora[4], lora[-1]) == ("40.0 ± 8.0", "90.0 ± 8.0", "+0.00 ± 7.41", "36,864")
    assert "*" not in twin[4]
    assert ours[4] == "reference"
    assert "5-way 1-shot, 8 episodes" in text
    assert "ours minus method" in text


def test_table_without_families_has_no_column_for_them(comparison):
    assert "cells" not in comparison.by_family()["cells"].table()


def test_markdown_table_has_as_many_bars_in_each_line(comparison):
    lines = comparison.table(markdown=True).split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert r"LoRA \| rank 4" in lines[3]


def test_csv_holds_every_method_and_family(comparison, tmp_path):
    path = tmp_path / "new" / "results.csv"
    comparison.to_csv(path)
    with path.open(encoding="utf-8") as file:
        records = {(r["method"], r["family"]): r for r in csv.DictReader(file)}
    assert len(records) == 4 * 3
    ridge = records["ridge", "glyphs"]
    assert float(ridge["accuracy"]) == pytest.approx(0.7)
    assert float(ridge["difference"]) == pytest.approx(0.1)
    assert (ridge["episodes"], ridge["reference"], ridge["outcome"]) == ("4", "ours", "wins")
    assert records["LoRA | rank 4", "all"]["adapted_values"] == "36864"


def test_json_round_trip_is_exact(comparison, tmp_path):
    path = tmp_path / "results.json"
    thirds = MethodResult("thirds", "control", np.full(8, 1 / 3), np.float64(0.1), np.int64(7))  # pyright: ignore[reportArgumentType]
    before = replace(comparison, rows=(*comparison.rows, thirds))
    before.to_json(path)
    after = Comparison.from_json(path)
    assert (after.setting, after.families, after.reference) == (before.setting, before.families, before.reference)
    for a, b in zip(after.rows, before.rows, strict=True):
        assert vars(a) | {"accuracy": a.accuracy.tolist()} == vars(b) | {"accuracy": b.accuracy.tolist()}
    assert after.table() == before.table()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [{"speed": 1}], "families": []}'])
def test_from_json_names_the_file_it_cannot_read(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a saved comparison"):
        Comparison.from_json(path)


def test_a_failed_write_leaves_the_old_file(comparison, tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    path.write_text("old")
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        comparison.to_csv(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.csv", "old")]


@pytest.fixture
def no_pyplot(monkeypatch):
    """Importing pyplot fails, and settings must be as before."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    names = set(matplotlib.rcParams) - {"backend"}  # reading this one would choose a backend
    before = {name: matplotlib.rcParams[name] for name in names}
    yield
    assert {name: matplotlib.rcParams[name] for name in names} == before


@pytest.mark.usefixtures("no_pyplot")
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_accuracy_figure_has_a_panel_per_setting_and_family(comparison, tmp_path, suffix):
    path = tmp_path / f"accuracy.{suffix}"
    other = replace(comparison, setting="5-way 5-shot", rows=comparison.rows[1:])
    figure = accuracy_figure([comparison, other], path)
    assert path.stat().st_size > 5000
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["5-way 1-shot", "cells", "glyphs", "5-way 5-shot", "cells", "glyphs"]
    named = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert named == ["ours", "LoRA | rank 4", "ridge", "twin"]
    (leads,) = figure.axes[0].child_axes
    weights = {t.get_text().strip(): t.get_fontweight() for t in leads.get_yticklabels()}
    assert weights == {"+10.0 ± 0.0": "bold", "+0.0 ± 7.4": "normal", "+0.0 ± 0.0": "normal"}


def test_accuracy_figure_of_one_family_has_one_panel(comparison, tmp_path):
    assert len(accuracy_figure([comparison.by_family()["cells"]], tmp_path / "a.png").axes) == 1


def test_accuracy_figure_shows_where_the_reference_trails(comparison, tmp_path):
    (panel,) = accuracy_figure([comparison.by_family()["glyphs"]], tmp_path / "a.png").axes
    colors = {t.get_text().strip(): t.get_color() for t in panel.child_axes[0].get_yticklabels()}
    assert colors["\N{MINUS SIGN}10.0 ± 0.0"] == WRONG


def test_figures_are_the_same_bytes_again(comparison, tmp_path):
    for name in ("a.svg", "b.svg"):
        accuracy_figure([comparison], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_accuracy_figure_errors(comparison, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        accuracy_figure([], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.docx: .*\.png, \.svg or \.pdf"):
        accuracy_figure([comparison], tmp_path / "a.docx")


@pytest.mark.usefixtures("no_pyplot")
def test_curves_figure(tmp_path):
    metrics = [{"step": s, "loss": 2.0, "accuracy": 0.5} for s in range(40)]
    metrics[7]["loss"] = math.nan
    metrics[10] |= {"validation_accuracy": 0.4, "validation_accuracy_half_width": 0.1}
    figure = curves_figure(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    loss, accuracy = figure.axes
    raw, smooth = loss.lines
    assert np.size(np.asarray(raw.get_xdata())) == 39
    assert np.asarray(smooth.get_ydata()) == pytest.approx(2.0)  # smoothing keeps a constant, at the ends too
    assert accuracy.lines[2].get_ydata() == pytest.approx([40])
    assert len(curves_figure([{"step": 0, "loss": 1.0}], tmp_path / "one.png").axes) == 1


def test_curves_figure_without_curves(tmp_path):
    for metrics in ([], [{"step": 1, "lr": 0.1}]):
        with pytest.raises(ValueError, match="no loss or accuracy"):
            curves_figure(metrics, tmp_path / "curves.png")
