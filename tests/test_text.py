"""Text: which files, their order, how they are cut, tokenised once; and all that can be wrong."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.thread_ranks import ThreadRank, on_ranks
from trainer.config.schema import TextConfig
from trainer.data.build import Ranks, load_data
from trainer.data.dataset import Data
from trainer.data.text import Windows
from trainer.data.tokenizer import build_tokenizer
from trainer.errors import UserError

PROSE = "The quick brown fox jumps over the lazy dog; été, naïve, 東京.\n"


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Data]:
    """Build text data with a cache of the test's own; `values` are fields of TextConfig."""

    def run(ranks: Ranks | None = None, **values: object) -> Data:
        fields = {"context": 4, "validation": 0.5, "cache": str(tmp_path / "cache"), **values}
        return load_data(TextConfig(**fields), ranks)  # type: ignore[arg-type]

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose files, read in order, are b"0123456789" four times."""
    root = tmp_path / "texts"
    (root / "b" / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "b" / "a.txt").write_bytes(b"01234")
    (root / "b" / "deep" / "x.txt").write_bytes(b"56789012")
    (root / "b" / "z.txt").write_bytes(b"")
    (root / "c.txt").write_bytes(b"34567890123456789")
    (root / "c.log").write_bytes(b"not text")
    (root / ".hidden.txt").write_bytes(b"hidden")
    (root / ".git").mkdir()
    (root / ".git" / "d.txt").write_bytes(b"hidden")
    return root


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A file of the tokenizers library: a small byte-level BPE, trained here."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def everything(data: Data) -> list[int]:
    """Return the training part's tokens, then the validation part's, joined from their windows."""
    tokens: list[int] = []
    for part in (data.training, data.validation):
        samples = np.arange(len(part))
        tokens += part.inputs(samples).flatten().tolist() + part.targets(samples)[-1, -1:].tolist()
    return tokens


def cache_state(tmp_path: Path) -> dict[str, tuple[int, int]]:
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (tmp_path / "cache").iterdir()
    }


def test_a_folder_is_read_in_the_order_of_its_names(folder: Path, build: Callable[..., Data]) -> None:
    data = build(path=str(folder), pattern="*.txt", context=19)
    assert bytes(everything(data)) == b"0123456789" * 4


def test_the_pattern_may_name_folders(folder: Path, build: Callable[..., Data]) -> None:
    data = build(path=str(folder), pattern="deep/*.txt", context=3)
    assert bytes(everything(data)) == b"56789012"


def test_a_file(tmp_path: Path, build: Callable[..., Data]) -> None:
    (tmp_path / "text").write_bytes(b"abcdeVWXYZ")
    data = build(path=str(tmp_path / "text"))
    assert (len(data.training), len(data.validation)) == (1, 1)
    inputs, targets = data.training.inputs(np.array([0])), data.training.targets(np.array([0]))
    assert (bytes(inputs[0].tolist()), bytes(targets[0].tolist())) == (b"abcd", b"bcde")
    assert bytes(everything(data)) == b"abcdeVWXYZ"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_validation_is_the_end_of_the_text_and_not_trained_on(
    tmp_path: Path, build: Callable[..., Data], share: float
) -> None:
    numbers = np.arange(250, dtype=np.uint8)  # each byte once: a token shows its position
    (tmp_path / "text").write_bytes(numbers.tobytes())
    data = build(path=str(tmp_path / "text"), validation=share)
    trained, held_out = (
        {
            *part.inputs(np.arange(len(part))).flatten().tolist(),
            *part.targets(np.arange(len(part))).flatten().tolist(),
        }
        for part in (data.training, data.validation)
    )
    cut = 250 - int(250 * share)
    assert max(trained) < cut <= min(held_out)
    assert cut - max(trained) <= 4  # less than a window is unused
    assert 250 - max(held_out) <= 4


@settings(deadline=None, max_examples=100)
@given(
    tokens=st.lists(st.integers(0, 65535), min_size=1, max_size=200),
    context=st.integers(1, 20),
    data=st.data(),
)
def test_windows_are_slices(tokens: list[int], context: int, data: st.DataObject) -> None:
    windows = Windows(np.array(tokens, dtype=np.uint16), context)
    whole = [
        tokens[start : start + context + 1]
        for start in range(0, len(tokens), context)
        if len(tokens) - start >= context + 1
    ]
    assert len(windows) == len(whole)
    if whole:
        chosen = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5))
        samples = np.array(chosen, dtype=np.int64)
        inputs, targets = windows.inputs(samples), windows.targets(samples)
        assert inputs.tolist() == [whole[sample][:-1] for sample in chosen]
        assert targets.tolist() == [whole[sample][1:] for sample in chosen]
        for tensor in (inputs, targets):
            assert tensor.dtype == torch.int64
            assert tensor.shape == (len(chosen), context)
            assert tensor.is_contiguous()


def test_the_standard_library_needs_no_download(build: Callable[..., Data]) -> None:
    data = build(path=None, context=128, validation=0.05)
    assert 5e6 < len(data.training) * 128 < 50e6
    text = data.tokenizer.decode(data.training.inputs(np.arange(50_000)).flatten().tolist())
    assert text.count("\ndef ") > 1000
    assert "import unittest\n" in text  # the modules,
    assert "\ufffd" * 10 not in text  # as text


def test_tokenised_once(folder: Path, tmp_path: Path, build: Callable[..., Data]) -> None:
    first = build(path=str(folder), pattern="*.txt")
    state = cache_state(tmp_path)
    assert len(state) == 2
    second = build(path=str(folder), pattern="*.txt", context=3, validation=0.4)
    assert cache_state(tmp_path) == state
    assert build(path=str(folder), pattern="*.txt").fingerprint == first.fingerprint
    assert second.fingerprint != first.fingerprint


def test_a_change_is_detected(folder: Path, build: Callable[..., Data]) -> None:
    first = build(path=str(folder), pattern="*.txt")
    (folder / "a.txt").write_bytes(b"9876543210")
    second = build(path=str(folder), pattern="*.txt")
    assert bytes(everything(second))[:10] == b"9876543210"
    assert first.fingerprint != second.fingerprint
    (folder / "d.txt").write_bytes(b"more")
    assert build(path=str(folder), pattern="*.txt").fingerprint != second.fingerprint


def test_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path, build: Callable[..., Data]) -> None:
    """Not of names, times, or the division into files, which may differ between machines."""
    (tmp_path / "elsewhere").write_bytes(b"0123456789" * 4)
    os.utime(tmp_path / "elsewhere", (1, 1))
    one = build(path=str(folder), pattern="*.txt")
    other = build(path=str(tmp_path / "elsewhere"), cache=str(tmp_path / "other_cache"))
    assert one.fingerprint == other.fingerprint


def test_equal_name_size_and_time_elsewhere_is_another_text(
    tmp_path: Path, build: Callable[..., Data]
) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "text").write_text(place * 10)
        os.utime(tmp_path / place / "text", (1, 1))
    assert bytes(everything(build(path=str(tmp_path / "one"))))[:6] == b"oneone"
    assert bytes(everything(build(path=str(tmp_path / "two"))))[:6] == b"twotwo"


@pytest.mark.parametrize("damage", ["shorten", "lose", "garble", "deepen", "mistype"])
def test_a_damaged_cache_is_rebuilt(
    folder: Path, tmp_path: Path, build: Callable[..., Data], damage: str
) -> None:
    first = build(path=str(folder), pattern="*.txt", context=19)
    content = everything(first)
    (tokens,) = (tmp_path / "cache").glob("*.tokens")
    if damage == "shorten":
        os.truncate(tokens, 7)
    elif damage == "lose":
        tokens.unlink()
    elif damage == "mistype":
        description = json.loads(tokens.with_suffix(".json").read_text())
        tokens.with_suffix(".json").write_text(json.dumps(description | {"notes": 5}))
    else:
        tokens.with_suffix(".json").write_text("{" if damage == "garble" else "[" * 200_000)
    second = build(path=str(folder), pattern="*.txt", context=19)
    assert everything(second) == content
    assert second.fingerprint == first.fingerprint


def test_ranks_share_what_one_of_each_node_prepared(
    folder: Path, tmp_path: Path, build: Callable[..., Data]
) -> None:
    """Four ranks of two nodes share a cache: each waits once, all read the same, no files are left."""

    def rank(ranks: ThreadRank) -> tuple[Data, int]:
        return build(ranks, path=str(folder), pattern="*.txt"), ranks.gathered

    outcomes = on_ranks(rank, local_ranks=(0, 1, 0, 1))
    assert [waits for _, waits in outcomes] == [1] * 4
    assert len({data.fingerprint for data, _ in outcomes}) == 1
    assert len({tuple(everything(data)) for data, _ in outcomes}) == 1
    assert len(cache_state(tmp_path)) == 2


def test_the_other_ranks_of_a_node_prepare_nothing(folder: Path, build: Callable[..., Data]) -> None:
    outcomes = on_ranks(lambda rank: build(rank, path=str(folder)), local_ranks=(1, 2))
    assert ["are not in data.cache" in str(error) for error in outcomes] == [True, True]


def test_bytes_stay_bytes(tmp_path: Path, build: Callable[..., Data]) -> None:
    content = bytes(range(256)) + "été\r\n".encode() + b"\r\n"
    (tmp_path / "text").write_bytes(content)
    data = build(path=str(tmp_path / "text"), context=1)
    assert data.vocabulary == 256
    assert bytes(everything(data)) == content
    assert data.tokenizer.encode("é") == [0xC3, 0xA9]
    assert data.tokenizer.decode([0x61, 0xC3]) == "a\ufffd"


@given(text=st.text())
def test_bytes_decode_to_what_was_encoded(text: str) -> None:
    tokenizer = build_tokenizer("bytes")
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode("utf-8", "replace").decode()


def test_a_file_longer_than_one_read(tmp_path: Path, build: Callable[..., Data]) -> None:
    content = np.random.default_rng(0).integers(256, size=2_500_002, dtype=np.uint8)
    (tmp_path / "text").write_bytes(content.tobytes())
    data = build(path=str(tmp_path / "text"), context=1000)
    assert np.array_equal(np.array(everything(data), dtype=np.uint8), content)


def test_a_tokenizers_file(tmp_path: Path, bpe: Path, build: Callable[..., Data]) -> None:
    (tmp_path / "text").write_text(PROSE * 4, encoding="utf-8")
    data = build(path=str(tmp_path / "text"), tokenizer=str(bpe), context=1)
    library = tokenizers.Tokenizer.from_file(str(bpe))
    assert everything(data) == library.encode(PROSE * 4).ids
    assert data.vocabulary == library.get_vocab_size() > 256
    assert len(everything(data)) < len((PROSE * 4).encode()) / 2  # longer than bytes: it is trained
    assert data.tokenizer.encode(PROSE) == library.encode(PROSE).ids
    assert data.tokenizer.decode(data.tokenizer.encode(PROSE)) == PROSE


def test_a_long_file_is_cut_at_line_ends(tmp_path: Path, bpe: Path, build: Callable[..., Data]) -> None:
    lines = [f"line {number}, jumps over the lazy dog; été\r\n" for number in range(8000)]
    text = "".join([*lines, "fox " * 50_000, "\n", *lines])  # including a line longer than a chunk
    (tmp_path / "text").write_bytes(text.encode())
    data = build(path=str(tmp_path / "text"), tokenizer=str(bpe), context=1)
    assert data.tokenizer.decode(everything(data)) == text
    first = "".join(lines)
    expected = data.tokenizer.encode(first)
    assert everything(data)[: len(expected)] == expected


def test_additions_by_the_tokenizers_file_are_disabled(
    tmp_path: Path, bpe: Path, build: Callable[..., Data]
) -> None:
    library = tokenizers.Tokenizer.from_file(str(bpe))
    library.enable_truncation(5)
    library.enable_padding(length=100)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", library.token_to_id("<end>"))]
    )
    library.save(str(tmp_path / "other.json"))
    (tmp_path / "text").write_text(PROSE * 4)
    plain = build(path=str(tmp_path / "text"), tokenizer=str(bpe), context=1)
    other = build(path=str(tmp_path / "text"), tokenizer=str(tmp_path / "other.json"), context=1)
    assert everything(other) == everything(plain)
    assert other.tokenizer.encode(PROSE) == plain.tokenizer.encode(PROSE)


def test_another_tokenizer_makes_other_tokens(tmp_path: Path, bpe: Path, build: Callable[..., Data]) -> None:
    (tmp_path / "text").write_text(PROSE * 4)
    data = [build(path=str(tmp_path / "text"), tokenizer=name, context=1) for name in ("bytes", str(bpe))]
    assert data[0].fingerprint != data[1].fingerprint
    assert len(everything(data[0])) > len(everything(data[1]))


def test_text_that_is_not_utf8_is_read(tmp_path: Path, bpe: Path, build: Callable[..., Data]) -> None:
    (tmp_path / "text").write_bytes(b"quick \xff brown fox " * 10)
    data = build(path=str(tmp_path / "text"), tokenizer=str(bpe), context=1)
    assert data.tokenizer.decode(everything(data)) == "quick \ufffd brown fox " * 10


def check_all_ranks_raise_alike(build: Callable[..., Data], words: list[str], **values: object) -> None:
    """Check that every rank raises: otherwise a rank would wait forever for one that has left."""
    errors = on_ranks(lambda rank: build(rank, **values))
    assert {type(error) for error in errors} == {UserError}
    (message,) = {str(error) for error in errors}
    for word in words:
        assert word in message


def test_missing_data(tmp_path: Path, build: Callable[..., Data]) -> None:
    path = str(tmp_path / "nowhere")
    check_all_ranks_raise_alike(build, [f"data.path={path}", "does not exist"], path=path)
    check_all_ranks_raise_alike(build, ["data.path", "blank"], path="")


def test_empty_data(tmp_path: Path, build: Callable[..., Data]) -> None:
    path = tmp_path / "empty"
    path.mkdir()
    check_all_ranks_raise_alike(
        build, [f"data.path={path}", "data.pattern=*.md"], path=str(path), pattern="*.md"
    )
    (path / "a.md").touch()
    check_all_ranks_raise_alike(build, [f"data.path={path}", "is empty"], path=str(path))
    check_all_ranks_raise_alike(build, ["a.md", "is empty"], path=str(path / "a.md"))


def test_data_that_is_not_a_file(tmp_path: Path, build: Callable[..., Data]) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_all_ranks_raise_alike(build, ["neither a file nor a folder"], path=str(tmp_path / "pipe"))
    check_all_ranks_raise_alike(build, ["data.path", "cannot be read"], path="x" * 300)


@pytest.fixture
def not_root(build: Callable[..., Data]) -> Iterator[Path]:
    """A folder of an unprivileged user, as which the test runs: root may read everything."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        if user == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)


@pytest.mark.parametrize("forbidden", ["texts", "texts/inner", "texts/text", "texts/inner/text"])
def test_data_that_may_not_be_read(not_root: Path, build: Callable[..., Data], forbidden: str) -> None:
    (not_root / "texts" / "inner").mkdir(parents=True)
    (not_root / "texts" / "text").write_text(PROSE)
    (not_root / "texts" / "inner" / "text").write_text(PROSE)
    (not_root / forbidden).chmod(0)
    values = {"path": str(not_root / "texts"), "cache": str(not_root / "cache")}
    check_all_ranks_raise_alike(build, ["data.path", forbidden, "Permission denied"], **values)
    (not_root / forbidden).chmod(0o700)
    assert build(**values).vocabulary == 256


def test_a_cache_that_may_not_be_written(not_root: Path, build: Callable[..., Data]) -> None:
    (not_root / "text").write_text(PROSE)
    (not_root / "cache").mkdir(mode=0o500)
    for cache in ("cache", "cache/inner"):
        values = {"path": str(not_root / "text"), "cache": str(not_root / cache)}
        check_all_ranks_raise_alike(build, [f"data.cache={values['cache']}"], **values)


def test_a_cache_of_another_user_is_read(not_root: Path, build: Callable[..., Data]) -> None:
    (not_root / "text").write_text(PROSE)
    values = {"path": str(not_root / "text"), "cache": str(not_root / "cache")}
    first = build(**values)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (not_root / "cache").iterdir())
    (not_root / "cache").chmod(0o500)
    assert everything(build(**values)) == everything(first)


def test_text_shorter_than_a_sample(tmp_path: Path, build: Callable[..., Data]) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(199))
    values = {"path": str(path), "context": 9, "validation": 0.05}
    words = [
        f"data.path={path}",
        "199 tokens",
        "data.context=9",
        "200 in total",
        "190 for training",
        "9 for val",
    ]
    check_all_ranks_raise_alike(build, words, **values)
    path.write_bytes(bytes(200))
    assert len(build(**values).validation) == 1
    check_all_ranks_raise_alike(
        build, ["data.validation=0.0 ", "between 0 and 1"], **{**values, "validation": 0.0}
    )


def test_a_bad_tokenizer(tmp_path: Path, build: Callable[..., Data]) -> None:
    (tmp_path / "text").write_text(PROSE)
    (tmp_path / "tokenizer.json").write_text("{}")
    values = {"path": str(tmp_path / "text")}
    missing = str(tmp_path / "nowhere.json")
    check_all_ranks_raise_alike(
        build, [f"data.tokenizer={missing}", "No such file"], tokenizer=missing, **values
    )
    bad = str(tmp_path / "tokenizer.json")
    check_all_ranks_raise_alike(build, [f"data.tokenizer={bad}", "not a file of"], tokenizer=bad, **values)
    untrained = str(tmp_path / "untrained.json")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(untrained)
    check_all_ranks_raise_alike(build, ["no tokens"], tokenizer=untrained, **values)


def test_a_cache_that_is_not_a_folder(tmp_path: Path, build: Callable[..., Data]) -> None:
    (tmp_path / "text").write_text(PROSE)
    check_all_ranks_raise_alike(
        build, ["data.cache", "exists"], path=str(tmp_path / "text"), cache=str(tmp_path / "text")
    )
