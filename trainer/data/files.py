"""Finds the files that text is read from."""

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.errors import UserError

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class TextFile:
    """A text file, as it was when found.

    Attributes:
        path: The file's path.
        name: The path relative to the folder it was found in, with slashes.
        size: In bytes.
        modified: In nanoseconds since 1970.
    """

    path: Path
    name: str
    size: int
    modified: int


@dataclass(frozen=True)
class Source:
    """A source of text.

    Attributes:
        title: Its title in messages.
        root: The file, or the folder.
        files: Its files in reading order.
        notes: What a person should know about it.
    """

    title: str
    root: Path
    files: tuple[TextFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return the size of all files in bytes."""
        return sum(file.size for file in self.files)


def find_text(path: str | None, pattern: str) -> Source:
    """Return the file, or the folder's files, sorted by their relative paths.

    Folders are searched to any depth, also behind links, each real folder once. Hidden files and folders are
    skipped.

    Args:
        path: A file or a folder; None for the source of this machine's Python standard library.
        pattern: Which files of a folder to read, such as "*.txt" or "docs/*.md"; it must match the end of
            the path.

    Raises:
        UserError: There is nothing to read, or no permission to read it.
    """
    if path is None:
        return _standard_library()
    if not path:
        raise UserError("data.path is blank: give a file or a folder of text, or null for the default")
    try:
        source = _find(path, pattern)
    except (OSError, ValueError, RuntimeError) as error:  # a null character; no home for "~"
        raise UserError(f"data.path={path} cannot be read: {error}") from error
    if not source.size:
        raise UserError(f"{source.title} is empty: {len(source.files)} file(s) of 0 bytes")
    return source


def _find(path: str, pattern: str) -> Source:
    root = Path(path).expanduser()
    title = f"data.path={path}"
    if root.is_dir():
        found, dangling = _walk(root, follow=True)
        names = [name for name in found if PurePosixPath(name).match(pattern)]
        if not names:
            raise UserError(f"{title} has no files that match data.pattern={pattern}")
        files = tuple(_stat(root / name, name) for name in sorted(names))
        lost = (f"{title}: {dangling} links lead nowhere, and were left out",) if dangling else ()
        return Source(title, root, files, lost)
    if root.is_file():
        return Source(title, root, (_stat(root, root.name),))
    if root.exists():
        raise UserError(f"{title} is neither a file nor a folder")
    raise UserError(f"{title} does not exist (from {Path.cwd()}): give a file or a folder of text")


def _standard_library() -> Source:
    """Return Python's own modules: about 12 MB of real text that every machine has."""
    root = Path(sysconfig.get_paths()["stdlib"])
    title = f"the Python standard library's source in {root}"
    names = _walk(root, skip=_NOT_LIBRARY)[0] if root.is_dir() else []
    files = (_stat(root / name, name) for name in sorted(names) if name.endswith(".py"))
    source = Source(title, root, tuple(files))
    if not source.size:
        raise UserError(f"{title} was not found: set data.path to a file or a folder of text")
    return source


def _walk(root: Path, skip: frozenset[str] = frozenset(), *, follow: bool = False) -> tuple[list[str], int]:
    """Return the relative paths of the files below the root that are not hidden, and how many links are dead.

    They are plain strings, which are faster than paths: every run walks the standard library twice at start.

    Args:
        root: The folder.
        skip: The names of folders to leave out.
        follow: Whether to go into folders behind links: after all others, so that each keeps its own name.
    """
    names: list[str] = []
    links: list[tuple[str, str]] = []
    dead = 0
    pending = [(os.fspath(root), "")]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder, prefix = pending.pop()
        status = os.stat(folder)  # noqa: PTH116  (a plain string)
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_file():
                        names.append(prefix + entry.name)
                    elif entry.is_dir() and entry.name not in skip:
                        below = links if entry.is_symlink() else pending
                        below.append((entry.path, f"{prefix}{entry.name}/"))
                    elif entry.is_symlink() and not entry.is_dir():
                        dead += 1
        if not pending and follow and links:
            links.sort(reverse=True)
            pending.append(links.pop())
    return names, dead


def _stat(path: Path, name: str) -> TextFile:
    with path.open("rb") as stream:  # opened to check the permission
        status = os.fstat(stream.fileno())
    return TextFile(path, name, status.st_size, status.st_mtime_ns)
