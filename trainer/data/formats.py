"""Files that hold many documents: JSON lines, Parquet, and data sets that Hugging Face's `datasets` saved.

Every format is two functions: one counts what a file can be cut by, the other yields the documents of a range
of it. Lines are cut by bytes, Parquet by row groups, a data set by rows.
"""

import importlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.data.reading import ReadableFile, line_start
from trainer.errors import UserError, suggest

_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_COMPRESSED = (".gz", ".bz2", ".xz")
_SAVED = ("dataset_info.json", "state.json")  # a folder of `Dataset.save_to_disk`
_SPLITS = "dataset_dict.json"
_ROWS = 1024  # read at a time


def format_of(path: Path, asked: str) -> str:
    """Return the format of a file or a folder: "text", "jsonl", "parquet" or "dataset".

    Args:
        path: The file or the folder.
        asked: `data.format`: "auto" looks at the name.

    Raises:
        UserError: It is a folder of several splits of a data set.
    """
    if path.is_dir():
        if (path / _SPLITS).is_file():
            splits = json.loads((path / _SPLITS).read_text()).get("splits", [])
            raise UserError(
                f"data.path={path} holds the splits {', '.join(splits)} of a data set: give one of them, "
                f"such as data.path={path / (splits or ['train'])[0]}"
            )
        return "dataset" if all((path / name).is_file() for name in _SAVED) else "folder"
    if asked != "auto":
        return asked
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    if name.endswith(_LINES):
        return "jsonl"
    return "parquet" if name.endswith(_PARQUET) else "text"


def units(path: Path, kind: str) -> tuple[int, int]:
    """Return how many row groups a Parquet file has, or rows a data set; and how many bytes.

    Raises:
        UserError: It cannot be read, or the library for it is missing.
    """
    if kind == "dataset":
        rows = len(_saved(path))
        return rows, sum(file.stat().st_size for file in path.glob("*.arrow"))
    file = _parquet(path)
    return file.num_row_groups, path.stat().st_size


def lines(file: ReadableFile, field: str) -> Iterator[str]:
    """Yield the documents of a range of a file of JSON lines.

    Raises:
        UserError: A line is no JSON object, or has no such text; names the line.
    """
    with file.open("rb") as stream:
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            problem, document = _document(line, field)
            if problem is not None:
                place = 1 + number + _lines_before(file)
                raise UserError(f"{file.path}, line {place}: {problem}; data.format=text reads it as text")
            if document:
                yield document


def _document(line: bytes, field: str) -> tuple[str | None, str | None]:
    """Return what is wrong with a line, and its text."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"is no JSON ({error})", None
    if not isinstance(row, dict):
        return f"must be an object with the field {field!r}, not {type(row).__name__}", None
    if field not in row:
        return _no_field("field", field, list(row)), None
    value = row[field]
    if value is not None and not isinstance(value, str):
        return f"the field {field!r} must be text, not {type(value).__name__}", None
    return None, value


def _lines_before(file: ReadableFile) -> int:
    """Return how many lines come before the range of a file."""
    left, count = file.start, 0
    with file.path.open("rb") as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count


def rows(path: Path, kind: str, field: str, start: int, stop: int) -> Iterator[str]:
    """Yield the documents of a Parquet file's row groups, or of a data set's rows.

    Raises:
        UserError: There is no such column of text, or a part cannot be read.
    """
    if kind == "dataset":
        dataset = _saved(path)
        _check_column(path, field, dataset.column_names)
        texts = dataset.select_columns([field])
        for first in range(start, stop, _ROWS):
            yield from _texts(path, field, texts[first : min(first + _ROWS, stop)][field])
        return
    file = _parquet(path)
    _check_column(path, field, file.schema_arrow.names)
    try:
        for batch in file.iter_batches(_ROWS, row_groups=list(range(start, stop)), columns=[field]):
            yield from _texts(path, field, batch.column(0).to_pylist())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _texts(path: Path, field: str, values: list[Any]) -> Iterator[str]:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise UserError(f"{path}: the column {field!r} must be text, not {type(value).__name__}")
        if value:
            yield value


def _check_column(path: Path, field: str, names: list[str]) -> None:
    if field not in names:
        raise UserError(f"{path} {_no_field('column', field, names)}")


def _no_field(what: str, field: str, names: list[str]) -> str:
    known = ", ".join(names) or "none"
    return f"has no {what} {field!r}, but {known}: give data.field=...{suggest(field, names)}"


def _parquet(path: Path) -> Any:
    parquet = _library("pyarrow.parquet", path, "pyarrow")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _saved(path: Path) -> Any:
    library = _library("datasets", path, "datasets")
    try:
        return library.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"data.path={path} cannot be read as a saved data set: {error}") from error


def _library(module: str, path: Path, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the library {package}: pip install {package}") from error


def cut_lines(path: Path, size: int, every: int) -> list[tuple[int, int]]:
    """Return ranges of bytes of about `every` bytes each, which end at ends of lines."""
    places = [0]
    for place in range(every, size, every):
        if place > places[-1]:  # else a line is longer than a range
            places.append(line_start(path, place, size))
    return [(start, stop) for start, stop in pairwise([*places, size]) if start < stop]
