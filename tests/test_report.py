"""Reports of runs: figures show the measurements, and one clear message says what cannot be drawn."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.support.steps import step
from trainer.report import figures
from trainer.report.__main__ import main
from trainer.report.curves import curves
from trainer.report.read import read_run


def write_run(path: Path, steps: int = 3, *, timeline: bool = True, **numbers: float) -> Path:
    """Write a run's folder with some steps; `numbers` replace the usual ones."""
    path.mkdir(parents=True)
    with (path / "metrics.jsonl").open("w") as file:
        for number in range(1, steps + 1):
            usual = {"loss": 5.0 - number, "grad_norm": 1.0 / number, "lr": 1e-3, "step_seconds": 0.5}
            usual |= {"samples_per_second": 100.0 + number, "bubble": 0.25, "bubble_predicted": 0.2}
            entry = {"step": number, **usual, **numbers, "peak_memory_bytes": [3 << 20, 2 << 20]}
            file.write(json.dumps(entry) + "\n")
        file.write(json.dumps({"step": steps, "val_loss": 2.5}) + "\n")
    if timeline:
        step().save(path / "timeline.json")
    return path


def axis_words(axes: Axes) -> list[str]:
    return [
        axes.get_title(loc="left"),
        axes.get_title(loc="right"),
        *(each.get_text() for each in axes.texts),
    ]


def check_picture(path: Path) -> None:
    if path.suffix == ".svg":
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    else:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")


# --- curves


def panel(figure: Figure, heading: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(heading))


def test_curves_are_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    figure = curves([read_run(write_run(tmp_path / "run", steps=5))], ["run"])
    loss = panel(figure, "loss")
    assert loss.lines[0].get_xydata().tolist() == [[i, 5.0 - i] for i in range(1, 6)]
    assert [5, 2.5] in [point for line in loss.lines for point in line.get_xydata().tolist()]  # validation
    assert panel(figure, "throughput").lines[0].get_ydata().tolist() == [101, 102, 103, 104, 105]
    measured, *_, predicted = panel(figure, "bubble").lines
    assert set(measured.get_ydata()) == {0.25}
    assert set(predicted.get_ydata()) == {0.2}
    memory = panel(figure, "peak memory, MiB")
    assert [set(line.get_ydata()) for line in memory.lines] == [{3.0}, {2.0}]


def test_many_steps_get_a_running_median(tmp_path: Path) -> None:
    """One outlier in a hundred steps does not move it; the steps themselves are drawn too."""
    path = write_run(tmp_path / "run", steps=400, timeline=False)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(lines[199]) | {"samples_per_second": 1e6}
    (path / "metrics.jsonl").write_text("\n".join([*lines[:199], json.dumps(entry), *lines[200:]]) + "\n")
    steps, medians, *_ = panel(curves([read_run(path)], ["run"]), "throughput").lines
    assert max(steps.get_ydata()) == 1e6
    assert medians.get_ydata().tolist() == pytest.approx([101.0 + i for i in range(400)], abs=1)


def test_nan_is_shown_and_does_not_hide_the_rest(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=3)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": math.nan}) + "\n")
        file.write(json.dumps({"step": 5, "loss": None}) + "\n")  # as runs write it now
        file.write(json.dumps({"step": 5, "val_loss": None}) + "\n")
    loss = panel(curves([read_run(path)], ["run"]), "loss")
    assert loss.lines[0].get_ydata().tolist()[:3] == [4, 3, 2]
    assert "x: not finite at 2 steps" in axis_words(loss)
    assert loss.lines[1].get_xdata().tolist() == [4, 5]


def test_missing_numbers_are_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    figure = curves([read_run(path)], ["run"])
    assert "not recorded" in axis_words(panel(figure, "gradient norm"))
    assert "not recorded" not in axis_words(panel(figure, "loss"))


# --- the command


@pytest.mark.parametrize("steps", [1, 200])
def test_a_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int) -> None:
    path = write_run(tmp_path / "run", steps)
    assert main([str(path)]) == 0
    said = capsys.readouterr()
    drawn = [Path(line.removeprefix("drawn: ")) for line in said.out.splitlines() if line.startswith("drawn")]
    assert {file.name for file in drawn} == {"curves.png", "curves.svg", "gantt.png", "gantt.svg"}
    for file in drawn:
        assert file.parent == path / "report"
        check_picture(file)
    rate = 100 + (steps + 1) / 2
    row = rf"run +{steps} +4\.0000 -> {5 - steps:.4f} +2\.5000 +{rate} +25% +20%"
    assert re.fullmatch(row, said.out.splitlines()[1])
    assert said.err == ""


def test_several_runs_share_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_run(tmp_path / name / "0", timeline=name == "a") for name in ("a", "b")]
    out = tmp_path / "out"
    assert main([*map(str, paths), "--out", str(out), "--format", "svg"]) == 0
    said = capsys.readouterr().out
    assert len(list(out.iterdir())) == 2
    assert (out / "comparison.svg").exists()
    assert "no timeline.json" in said
    runs = [read_run(path) for path in paths]
    figure = curves(runs, ["one", "other"])
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ["one: gpt, 3 stages", "other"]
    assert len({line.get_color() for line in panel(figure, "gradient norm").lines[::2]}) == 2


def test_a_truncated_last_line_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run", steps=3)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.2')
    assert main([str(path), "--format", "svg"]) == 0
    assert "cut off" in capsys.readouterr().out
    assert read_run(path).steps == [1, 2, 3]


BROKEN = {
    "no folder": (None, None, "is not a folder"),
    "no metrics": ({}, None, "has no metrics.jsonl"),
    "no step": ({"metrics.jsonl": ""}, None, "has no step yet"),
    "only torn": ({"metrics.jsonl": '{"step"'}, None, "has no step yet"),
    "torn within": (
        {"metrics.jsonl": '{"step": 1, "lo\n{"step": 1, "loss": 1}\n'},
        None,
        "line 1, is not JSON",
    ),
    "no object": ({"metrics.jsonl": "[1]\n"}, None, "is not an object"),
    "no number": ({"metrics.jsonl": '{"step": 1, "loss": "low"}\n'}, None, "loss='low' is not a number"),
    "no bytes": (
        {"metrics.jsonl": '{"step": 1, "loss": 1, "peak_memory_bytes": 3}\n'},
        None,
        "is not a list",
    ),
    "not text": ({"metrics.jsonl": "\udcff\udcfe\n"}, None, "cannot be read"),
    "torn timeline": ({"timeline.json": '{"title": "gpt"'}, True, "is not a step's timeline"),
    "other timeline": ({"timeline.json": '{"measured": []}'}, True, "is not a step's timeline"),
}


@pytest.mark.parametrize(("files", "has_metrics", "message"), BROKEN.values(), ids=BROKEN)
def test_bad_input_is_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str] | None,
    has_metrics: bool | None,
    message: str,
) -> None:
    path = tmp_path / "run"
    if files is not None:
        path = write_run(path) if has_metrics else path
        path.mkdir(exist_ok=True)
        for name, content in files.items():
            (path / name).write_bytes(content.encode(errors="surrogateescape"))
    assert main([str(path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("trainer: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert str(path) in said.err
    assert not (path / "report").exists()


def test_the_folder_of_a_sweep_names_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "sweep" / "0")
    assert main([str(tmp_path / "sweep")]) == 2
    assert f"did you mean {tmp_path / 'sweep' / '0'}?" in capsys.readouterr().err


def test_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("in the way")
    assert main([str(path), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_command_starts_without_torch_and_mpi(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    code = (
        "import sys; from trainer.report.__main__ import main; code = main(sys.argv[1:]);"
        "print({'torch', 'mpi4py', 'hydra', 'horovod', 'matplotlib.pyplot'} & set(sys.modules), code)"
    )
    program = [sys.executable, "-c", code, str(path), "--format", "svg"]
    ended = subprocess.run(program, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set() 0"


# --- the figures of the docs


@pytest.mark.slow
def test_figures_of_the_docs_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = figures.draw(tmp_path / "a"), figures.draw(tmp_path / "b")
    assert {file.name for file in first} >= {"schedules.svg", "schedule-gpipe.png", "schedule-1f1b.svg"}
    for one, other in zip(first, second, strict=True):
        check_picture(one)
        assert one.read_bytes() == other.read_bytes(), one.name
