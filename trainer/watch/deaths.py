"""Why a rank is gone that has not said so: what the kernel counted, and what a crash wrote."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.config.sizes import size_text
from trainer.watch.node import Neighbour
from trainer.watch.seen import Seen
from trainer.watch.words import held, name_of, stack_lines, work_of

_FATAL = re.compile(r"Fatal Python error: (.+)")
_SIGNALS = {
    "Bus error": "SIGBUS, exit code 135",
    "Segmentation fault": "SIGSEGV, exit code 139",
    "Aborted": "SIGABRT, exit code 134",
    "Floating point exception": "SIGFPE, exit code 136",
    "Illegal instruction": "SIGILL, exit code 132",
}
FITS = "memory.recompute=full, more layout.stages or a smaller batch.micro_size need less"


def cause_of(each: Neighbour, seen: Seen) -> str:
    """Return why a rank is gone, in one line."""
    name, where = name_of(seen), work_of(seen)
    if each.killings.happened():
        allowed = each.killings.limit
        limit = f"; its control group may have {size_text(allowed)}" if allowed else ""
        holding = f"; {held(seen)}{limit}" if held(seen) else limit
        return f"{name} was killed by the kernel, out of memory, in {where}{holding}; {FITS}"
    written = "" if each.stack is None else each.stack.written()
    fatal = _FATAL.search(written)
    if fatal is None:
        return f"{name} was killed in {where} (by SIGKILL, such as kill -9, or by its own end of the process)"
    kind = fatal[1].strip()
    code = _SIGNALS.get(kind)
    lines = stack_lines(written, 1)
    line = f", at {lines[0].removeprefix('File ')}" if lines else ""
    changed = ""
    if kind == "Bus error":
        mapped = list(changed_files(seen.place.get("mapped", {})))
        changed = (
            f": {', '.join(mapped)}" if mapped else ": a file that it maps has changed, or /dev/shm is full"
        )
    return f"{name} crashed ({code or kind}) in {where}{changed}{line}"


def changed_files(mapped: Mapping[str, Any]) -> Iterable[str]:
    """Yield those of the files, given with their sizes, that are missing or shorter now."""
    for path, size in mapped.items():
        try:
            now = Path(path).stat().st_size
        except OSError:
            yield f"the mapped file {path} is gone"
            continue
        if now < int(size):
            yield f"the mapped file {path} has {now} bytes now, and had {size}"
