"""Removes the files by which the launcher finds out whether a folder is shared; run on a host, as text."""

import contextlib
import json
import os
import sys

for token in json.load(sys.stdin)["tokens"]:
    with contextlib.suppress(OSError):
        os.unlink(token)  # noqa: PTH108
print("trainer-launch-answer {}")
