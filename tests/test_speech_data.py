"""Recordings and transcripts as samples, against signals that are known; and what is wrong with a corpus."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers.audio_utils import mel_filter_bank

from tests.support.tones import LETTERS, RATE, random_texts, sound, write_corpus, write_wave
from trainer.config.data import SpeechDataConfig
from trainer.data.build import example_data, load_data
from trainer.data.speech.features import Bands, log_mel, mel_filters
from trainer.data.speech.load import Utterances
from trainer.errors import UserError

BANDS = Bands(number=20, lowest=100, highest=3800, window=0.025, hop=0.01)
ALL = np.arange(4, dtype=np.int64)


def config(path: Path, **options: object) -> SpeechDataConfig:
    values = {"path": str(path), "cache": str(path.parent / "cache"), "features": 20, "highest": 3800.0}
    values |= {"letters": "abcd'", "lowest": 100.0}
    return SpeechDataConfig(**(values | options))  # type: ignore[arg-type]


def load(path: Path, **options: object) -> tuple[Utterances, Utterances]:
    data = load_data(config(path, **options))
    assert isinstance(data.training, Utterances)
    assert isinstance(data.validation, Utterances)
    return data.training, data.validation


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write four recordings of one speaker, and one of another."""
    texts = {"anna": ["AB CAD", "a'c", "bad", "dab dab"], "bert": ["ab"]}
    return write_corpus(tmp_path / "corpus", texts)


def test_filters_are_those_of_another_library() -> None:
    wanted = mel_filter_bank(257, 20, 100, 3800, 16000, norm=None, mel_scale="htk")
    torch.testing.assert_close(
        mel_filters(16000, 512, BANDS).T.double(), torch.tensor(wanted), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("rate", [8000, 22050])
def test_a_tone_lies_in_its_band(rate: int) -> None:
    """At every rate: two seconds, of which the second is louder, and an octave higher."""
    time = torch.arange(rate) / rate
    signal = torch.cat([0.1 * torch.sin(2 * np.pi * 500 * time), 0.3 * torch.sin(2 * np.pi * 1000 * time)])
    features = log_mel(signal, rate, BANDS)
    assert abs(len(features) - 201) <= 1
    filters = mel_filters(rate, 1024, BANDS)
    for frequency, part in ((500, features[10:90]), (1000, features[110:190])):
        band = filters[:, round(frequency * 1024 / rate)].argmax()
        assert part[:, band].min() > part.mean()
        assert (part[:, band] > 0.5).all()
    torch.testing.assert_close(features.mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(20), atol=0.02, rtol=0)


def test_samples(corpus: Path) -> None:
    training, validation = load(corpus, validation_path=str(corpus))
    assert len(training) == 5
    assert training.letters.letters == "'abcd"
    inputs, targets = training.inputs(ALL), training.targets(ALL)
    letters = [row[:length].tolist() for row, length in zip(*targets.values(), strict=True)]
    assert [training.letters.decode(each) for each in letters] == ["ab cad", "a'c", "bad", "dab dab"]
    assert targets["letters"].shape == (4, 7)
    frames = [1 + round((1 + 2 * length) * 0.08 * 100) for length in targets["lengths"].tolist()]
    assert inputs["lengths"].tolist() == frames
    assert inputs["frames"].shape == (4, max(frames), 20)
    wanted = log_mel(torch.from_numpy(sound("a'c", 0.2)).float(), RATE, BANDS)
    torch.testing.assert_close(inputs["frames"][1, : frames[1]], wanted, atol=5e-3, rtol=2e-3)
    assert not inputs["frames"][1, frames[1] :].any()
    assert torch.equal(validation.inputs(ALL)["frames"], inputs["frames"])


def test_features_are_computed_once(corpus: Path) -> None:
    first = load_data(config(corpus))
    cache = corpus.parent / "cache"
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert load_data(config(corpus)).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    write_wave(corpus / "anna/1/anna-1-0000.wav", sound("ab cad", 0.9))  # of the same size
    os.utime(corpus / "anna/1/anna-1-0000.wav", ns=(1, 1))
    assert load_data(config(corpus)).fingerprint != first.fingerprint


def test_a_file_that_was_cut_off_is_written_again(corpus: Path) -> None:
    first = load_data(config(corpus))
    for path in (corpus.parent / "cache").glob("*.features"):
        path.write_bytes(path.read_bytes()[:-2])
    assert load_data(config(corpus)).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 4000.0}, "data.lowest=4000 must be below data.highest=3800"),
        ({"hop": 10.0, "window": 1e-4}, "are in seconds: each must be 0.001 or more"),
    ],
)
def test_bands_that_make_no_sense(options: dict[str, float], message: str, corpus: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_data(config(corpus, **options))


def test_a_corrected_transcript_is_another_corpus(corpus: Path) -> None:
    first = load_data(config(corpus))
    file = corpus / "anna/1/anna-1.trans.txt"
    file.write_text(file.read_text().replace("bad", "cab"))
    assert load_data(config(corpus)).fingerprint != first.fingerprint


def test_whole_speakers_are_held_out(tmp_path: Path) -> None:
    speakers = {f"speaker{number}": random_texts(2, number) for number in range(10)}
    corpus = write_corpus(tmp_path / "corpus", speakers)
    training, validation = load(corpus, validation=0.3)
    names = [{name.split("/")[-3] for name in part._names} for part in (training, validation)]
    assert [len(each) for each in names] == [7, 3]
    assert not names[0] & names[1]


def test_flac_is_read(corpus: Path) -> None:
    wanted, _ = load(corpus, validation_path=str(corpus))
    for path in sorted(corpus.rglob("*.wav")):
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
        path.unlink()
    found, _ = load(corpus, validation_path=str(corpus))
    torch.testing.assert_close(found.inputs(ALL), wanted.inputs(ALL), atol=1e-2, rtol=0)


def test_long_recordings_are_left_out_with_a_note(corpus: Path) -> None:
    data = load_data(config(corpus, longest=0.8, validation_path=str(corpus)))
    assert data.notes == 2 * ("2 of 5 recordings are longer than data.longest, left out",)
    assert len(data.training) == 3


def test_examples_need_no_files(tmp_path: Path) -> None:
    data = example_data(config(tmp_path / "nowhere", longest=10.0))
    assert isinstance(data.training, Utterances)
    assert data.training.inputs(np.zeros(3, dtype=np.int64))["frames"].shape == (3, 1000, 20)
    assert data.training.letters.vocabulary == 29


def _edit(corpus: Path, old: str, new: str) -> None:
    file = corpus / "anna/1/anna-1.trans.txt"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def _damage(corpus: Path) -> None:
    file = corpus / "anna/1/anna-1-0002.wav"
    file.write_bytes(b"RIFF but not a recording")


def _empty(corpus: Path) -> None:
    write_wave(corpus / "anna/1/anna-1-0002.wav", np.zeros(0))


def _sparse(corpus: Path) -> None:
    write_wave(corpus / "anna/1/anna-1-0002.wav", np.zeros(400), rate=4000)


def _stranger(corpus: Path) -> None:
    shutil.copy(corpus / "anna/1/anna-1-0002.wav", corpus / "anna/1/anna-1-0009.wav")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(_stranger, ["anna-1-0009.wav has no transcript"], id="no transcript"),
        pytest.param(
            lambda corpus: (corpus / "anna/1/anna-1-0002.wav").unlink(),
            ["anna-1.trans.txt, line 3", "no recording anna-1-0002.flac"],
            id="no recording",
        ),
        pytest.param(_damage, ["anna-1-0002.wav cannot be read as a recording"], id="damaged"),
        pytest.param(_empty, ["anna-1-0002.wav is a recording without samples"], id="no samples"),
        pytest.param(_sparse, ["anna-1-0002.wav has 4000 samples", "data.highest=3800"], id="low rate"),
        pytest.param(
            lambda corpus: _edit(corpus, " bad", ""),
            ["line 3", "anna-1-0002 is empty"],
            id="empty transcript",
        ),
        pytest.param(
            lambda corpus: _edit(corpus, "0002 bad", "0001 bad"), ["line 3", "second transcript"], id="twice"
        ),
        pytest.param(
            lambda corpus: _edit(corpus, "bad", "bäd"),
            ["anna-1-0002.wav", "'ä', which is not in data.letters"],
            id="unknown letter",
        ),
        pytest.param(
            lambda corpus: _edit(corpus, "bad", "bad " * 40),
            ["anna-1-0002.wav needs 159 frames for its 159 letters", "has 57"],
            id="too long",
        ),
        pytest.param(
            lambda corpus: (corpus / "anna/1/anna-1.trans.txt").write_bytes(b"anna-1-0002 \xff"),
            ["anna-1.trans.txt is not UTF-8, at byte 12"],
            id="not UTF-8",
        ),
        pytest.param(lambda corpus: shutil.rmtree(corpus / "anna"), ["one speaker"], id="one speaker"),
        pytest.param(shutil.rmtree, ["is no folder", "trainer.data.speech.make"], id="no folder"),
        pytest.param(
            lambda corpus: [path.unlink() for path in corpus.rglob("*.txt")],
            ["no transcripts"],
            id="no texts",
        ),
    ],
)
def test_what_is_wrong_with_a_corpus(spoil: object, words: list[str], corpus: Path) -> None:
    assert callable(spoil)
    spoil(corpus)
    with pytest.raises(UserError) as caught:
        load_data(config(corpus))
    for word in words:
        assert word in str(caught.value)


def test_a_letter_that_only_validation_has(corpus: Path, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", {"cleo": ["abc"], "dora": ["add e"]})
    with pytest.raises(UserError, match=r"dora-1-0000.wav has the character 'e', which is not in the transc"):
        load_data(config(corpus, validation_path=str(other), letters=None))


def test_all_tones_are_below_the_highest_band() -> None:
    assert max(LETTERS.values()) < BANDS.highest < RATE / 2
