"""Ways to damage a checkpoint; where it matters, so that its digests are right all the same."""

import json
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

DEEP = b"[" * 200_000


def rewrite(checkpoint: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint, and its entry in the manifest."""
    (checkpoint / name).write_bytes(data)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def edit_json(checkpoint: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change the content of a JSON file."""
    content = json.loads((checkpoint / name).read_text())
    change(content)
    data = json.dumps(content).encode()
    if name == "manifest.json":
        (checkpoint / name).write_bytes(data)
    else:
        rewrite(checkpoint, name, data)


def layer_files(checkpoint: Path) -> list[str]:
    """Return the names of the files of the layers."""
    return [layer["file"] for layer in json.loads((checkpoint / "manifest.json").read_text())["layers"]]


def edit_tensors(checkpoint: Path, change: Callable[[dict[str, Tensor]], object], layer: int = 0) -> None:
    """Change the tensors of a layer's file."""
    name = layer_files(checkpoint)[layer]
    data = (checkpoint / name).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    tensors = load(data)
    change(tensors)
    rewrite(checkpoint, name, save(tensors, metadata=metadata))


def first(tensors: dict[str, Tensor], kind: str, ending: str = "") -> str:
    """Return the name of the first tensor of a kind."""
    return next(name for name in sorted(tensors) if name.startswith(kind) and name.endswith(ending))


def _set(name: str, kind: str, ending: str, change: Callable[[Tensor], Tensor]) -> tuple[str, Any]:
    def damage(checkpoint: Path) -> None:
        def apply(tensors: dict[str, Tensor]) -> None:
            key = first(tensors, kind, ending)
            tensors[key] = change(tensors[key]).contiguous()

        edit_tensors(checkpoint, apply)

    return name, damage


def _flip(checkpoint: Path) -> None:
    file = checkpoint / layer_files(checkpoint)[-1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _exchange(checkpoint: Path) -> None:
    """Exchange two files, with their digests: of layers that look alike, where there are such."""
    names = layer_files(checkpoint)
    size = {name: (checkpoint / name).stat().st_size for name in names}
    pairs = [(one, other) for one in names for other in names if one < other and size[one] == size[other]]
    one, other = (pairs or [(names[0], names[-1])])[0]
    contents = (checkpoint / one).read_bytes(), (checkpoint / other).read_bytes()
    rewrite(checkpoint, one, contents[1])
    rewrite(checkpoint, other, contents[0])


def _outside(checkpoint: Path) -> None:
    name = layer_files(checkpoint)[0]
    outside = f"../{checkpoint.name}.outside"
    (checkpoint / outside).write_bytes((checkpoint / name).read_bytes())

    def change(manifest: Any) -> None:
        manifest["files"][outside] = manifest["files"].pop(name)
        manifest["layers"][0]["file"] = outside

    edit_json(checkpoint, "manifest.json", change)


def _manifest(checkpoint: Path, data: bytes) -> None:
    (checkpoint / "manifest.json").write_bytes(data)


def _as_folder(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "manifest.json").mkdir()


def _header(header: bytes, length: int | None = None) -> Callable[[Path], None]:
    data = struct.pack("<Q", len(header) if length is None else length) + header
    return lambda checkpoint: rewrite(checkpoint, layer_files(checkpoint)[0], data)


def _progress(**values: Any) -> Callable[[Path], None]:
    return lambda checkpoint: edit_json(checkpoint, "progress.json", lambda it: it.update(values))


def _without(name: str, key: str) -> Callable[[Path], None]:
    return lambda checkpoint: edit_json(checkpoint, name, lambda content: content.pop(key))


def _extended(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: edit_json(checkpoint, name, lambda content: content.update(newer=1))


DAMAGES: dict[str, Callable[[Path], None]] = dict(
    [
        ("bit flip", _flip),
        ("layer missing", lambda path: (path / layer_files(path)[0]).unlink()),
        ("layer truncated", lambda path: (path / layer_files(path)[0]).write_bytes(b"x" * 20)),
        ("layer empty", lambda path: rewrite(path, layer_files(path)[0], b"")),
        ("layers exchanged", _exchange),
        ("path outside", _outside),
        ("manifest cut", lambda path: _manifest(path, b'{"format": 2, "lay')),
        ("manifest empty", lambda path: _manifest(path, b"")),
        ("manifest no UTF-8", lambda path: _manifest(path, b'{"\xff": 1}')),
        ("manifest deep", lambda path: _manifest(path, DEEP)),
        ("manifest a folder", _as_folder),
        ("no format", _without("manifest.json", "format")),
        ("manifest with more keys", _extended("manifest.json")),
        (
            "format of another type",
            lambda path: edit_json(path, "manifest.json", lambda it: it.update(format=[2])),
        ),
        ("header of 2^60", _header(b"{}", 1 << 60)),
        ("header deep", _header(DEEP)),
        ("header a list", _header(b"[]")),
        ("progress deep", lambda path: rewrite(path, "progress.json", DEEP)),
        ("progress with more keys", _extended("progress.json")),
        ("progress lacks a key", _without("progress.json", "samples")),
        ("step below 0", _progress(step=-5)),
        ("samples below 0", _progress(samples=-1)),
        ("step a text", _progress(step="3")),
        ("other step", _progress(step=2)),
        ("loss scale of another form", _progress(loss_scale={"value": 1.0})),
        _set("state of another shape", "optimizer.", "exp_avg", lambda tensor: tensor.reshape(1, -1)),
        _set("state too small", "optimizer.", "exp_avg_sq", lambda tensor: tensor.reshape(-1)[:1]),
        _set("state of another type", "optimizer.", "exp_avg", lambda tensor: tensor.half()),
        _set("step of a state is a vector", "optimizer.", "step", lambda tensor: tensor.repeat(3)),
        _set("state not finite", "optimizer.", "exp_avg", lambda tensor: torch.full_like(tensor, torch.nan)),
        _set("weights of another type", "weight.", "", lambda tensor: tensor.int()),
        _set("weights of another shape", "weight.", "", lambda tensor: tensor.reshape(1, -1)),
        _set("weights not finite", "weight.", "", lambda tensor: torch.full_like(tensor, torch.nan)),
    ]
)
