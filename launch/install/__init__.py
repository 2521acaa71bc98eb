"""The set-up of `make setup` and `make wheels`, in the standard library alone.

It creates `.venv`, installs torch, an MPI and the project's dependencies there, and builds Horovod
against exactly that torch. Each file is one step; `steps.py` reads top to bottom.
"""
