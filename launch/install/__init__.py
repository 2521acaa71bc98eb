"""The set-up behind ``make setup`` and ``make wheels``; uses the standard library only.

It makes ``.venv``, installs torch, an MPI and the project's dependencies there, and builds Horovod
against exactly that torch. One file is one step; ``steps.py`` reads top to bottom.
"""
