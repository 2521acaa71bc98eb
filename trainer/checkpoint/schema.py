"""What `manifest.json` and `progress.json` of a checkpoint hold, checked key by key.

Both are closed: a key that this trainer does not know comes from a newer one, and may change the others.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trainer.errors import UserError

FORMATS = (1, 2)
_LAYER_FILE = re.compile(r"layers/[^/\0]+\.safetensors")
_MOST = 1 << 53  # beyond any count of steps and samples


class DamagedError(UserError):
    """A checkpoint cannot be used, whatever the run: an older one may be whole."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: Optimizer steps done.
        samples: Samples trained on since the start of the run: the position in the data.
        seed: The run's seed.
        optimizer: The optimizer's name; its state fits no other optimizer.
        versions: The versions of the software that made it.
        data: The data's fingerprint; None in checkpoints from before it was saved.
        loss_scale: The attributes of the run's `LossScale`; None without one, and in older checkpoints.
        replication: The state of the replication strategy.
    """

    step: int
    samples: int
    seed: int
    optimizer: str
    versions: dict[str, str]
    data: str | None = None
    loss_scale: dict[str, Any] | None = None
    replication: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerEntry:
    """A layer in the manifest.

    Attributes:
        file: The name of its file.
        parameters: The shapes of the parameters that it owns, by name.
    """

    file: str
    parameters: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FileEntry:
    """A file in the manifest: its size and its SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        format: The checkpoint's format.
        layers: The model's layers by name, in order.
        files: All other files by name.
    """

    format: int
    layers: Mapping[str, LayerEntry]
    files: Mapping[str, FileEntry]

    def has(self, file: str) -> bool:
        """Return whether there is such a file."""
        return file in self.files


def read_json(data: bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: It is not strict JSON, or nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_manifest(data: bytes) -> Manifest:
    """Return the content of a manifest.

    Raises:
        ValueError: It is damaged.
        UserError: It has another format.
    """
    content = read_json(data)
    _check(isinstance(content, dict) and "format" in content, "it has no format")
    if content["format"] not in FORMATS or isinstance(content["format"], bool):
        raise FormatError(content["format"])
    _check_keys(content, {"format", "layers", "files"}, set(), "the manifest")
    _check(isinstance(content["files"], dict) and isinstance(content["layers"], list), "files or layers")
    files = {name: _file(name, entry) for name, entry in content["files"].items()}
    layers: dict[str, LayerEntry] = {}
    for entry in content["layers"]:
        _check_keys(entry, {"name", "file", "parameters"}, set(), "a layer")
        name, file, shapes = entry["name"], entry["file"], entry["parameters"]
        _check(isinstance(name, str) and name not in layers, f"the name of a layer, {str(name)[:40]!r}")
        _check(
            isinstance(file, str) and file in files and bool(_LAYER_FILE.fullmatch(file)),
            f"the file of {name}",
        )
        _check(
            all(file != other.file for other in layers.values()), f"the file of {name}, also of another layer"
        )
        _check(isinstance(shapes, dict) and all(map(_is_shape, shapes.values())), f"the shapes of {name}")
        layers[name] = LayerEntry(file, {key: tuple(shape) for key, shape in shapes.items()})
    _check(bool(layers) and "progress.json" in files, "layers or progress.json are missing")
    return Manifest(content["format"], layers, files)


class FormatError(ValueError):
    """The checkpoint has another format."""

    def __init__(self, found: object) -> None:
        known = " and ".join(map(str, FORMATS))
        super().__init__(f"it has format {str(found)[:40]}; this trainer reads {known}")


def read_progress(data: bytes) -> Progress:
    """Return the content of `progress.json`.

    Raises:
        ValueError: It is damaged.
    """
    content = read_json(data)
    required = {item.name for item in fields(Progress) if _required(item)}
    _check_keys(content, required, {item.name for item in fields(Progress)} - required, "the progress")
    for name, check in _PROGRESS.items():
        if name in content:
            _check(check(content[name]), f"{name}={str(content[name])[:40]}")
    return Progress(**content)


def _required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _file(name: str, entry: Any) -> FileEntry:
    inside = name in ("progress.json", "optimizer.json") or bool(_LAYER_FILE.fullmatch(name))
    _check(inside, f"the name of a file, {name[:80]!r}")
    _check_keys(entry, {"bytes", "sha256"}, set(), name)
    _check(_is_count(entry["bytes"]), f"the size of {name}")
    _check(isinstance(entry["sha256"], str), f"the SHA-256 of {name}")
    return FileEntry(entry["bytes"], entry["sha256"])


def _check_keys(content: Any, required: set[str], optional: set[str], what: str) -> None:
    _check(isinstance(content, dict), f"{what} is no object")
    missing = sorted(required - content.keys())
    _check(not missing, f"{what} lacks {', '.join(missing)}")
    unknown = sorted(content.keys() - required - optional)
    if unknown:
        names = ", ".join(unknown)[:80]
        raise ValueError(f"{what} has unknown keys, {names}: a newer trainer may have made it")


def _check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"what it says is wrong: {what}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= _MOST


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_loss_scale(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"value", "good_steps"}:
        return False
    scale = value["value"]
    number = isinstance(scale, float) or _is_int(scale)
    return number and 0 < scale < math.inf and _is_count(value["good_steps"])


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "samples": _is_count,
    "seed": _is_int,
    "optimizer": lambda value: isinstance(value, str),
    "versions": _are_texts,
    "data": lambda value: isinstance(value, str | None),
    "loss_scale": _is_loss_scale,
    "replication": lambda value: isinstance(value, dict),
}
