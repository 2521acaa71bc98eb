"""The command that makes a spoken corpus; what speaks it may be missing."""

import shutil
from pathlib import Path

import pytest

from trainer.config.data import SpeechDataConfig
from trainer.data.build import load_data
from trainer.data.speech.corpus import find_recordings
from trainer.data.speech.make import WORDS, main

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


@needs_espeak
def test_a_corpus_is_made_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "spoken"
    assert main([str(folder), "--train", "12", "--held-out", "4"]) == 0
    assert "12 utterances" in capsys.readouterr().out
    parts = [find_recordings(str(folder / part), "data.path") for part in ("train", "held-out")]
    assert [len(part) for part in parts] == [12, 4]
    speakers = [{each.speaker for each in part} for part in parts]
    assert not speakers[0] & speakers[1]
    assert {word for part in parts for each in part for word in each.text.split()} <= set(WORDS)
    config = SpeechDataConfig(
        path=str(folder / "train"), validation_path=str(folder / "held-out"), cache=str(tmp_path)
    )
    data = load_data(config)
    assert (len(data.training), len(data.validation)) == (12, 4)


@needs_espeak
def test_the_seed_chooses_what_is_said(tmp_path: Path) -> None:
    texts = []
    for place, seed in enumerate(["3", "3", "4"]):
        assert main([str(tmp_path / str(place)), "--train", "2", "--held-out", "1", "--seed", seed]) == 0
        texts.append([each.text for each in find_recordings(str(tmp_path / str(place) / "train"), "")])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/new", "--train", "0"], "--train 0 --held-out 200: each must be 1 or more"),
        (["{}"], "exists already: give a new folder"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([each.format(tmp_path) for each in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_speaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(tmp_path / "new")]) == 2
    assert "espeak-ng, which speaks the corpus, is not installed: apt-get install" in capsys.readouterr().err
