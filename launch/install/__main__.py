"""`python3 -m launch.install`: check the interpreter first, in syntax that an old one can still parse."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - the reader of this message runs the old interpreter
    sys.stderr.write(
        "set-up: this is Python {}.{}; Python 3.10 or newer is needed.\n"
        "Install one and pass it: make setup PYTHON=python3.11\n".format(*sys.version_info[:2])
    )
    sys.exit(2)

from launch.install.command import main

sys.exit(main(sys.argv[1:]))
