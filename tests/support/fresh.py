"""Resets a process after every job, so that the next job finds it as new.

| left by a job | why it would matter to the next |
| --- | --- |
| environment, arguments, import path, working directory | the command reads them |
| modules of the job's folder | another folder may have a module of the same name |
| signal handlers, log handlers | they belong to a finished run |
| Hydra's singletons, cached results of the trainer | the next configuration must be composed from scratch |
| torch's threads, flags and generator; other generators | results depend on them |
| garbage | a run's tensors live in reference cycles |
"""

import copy
import functools
import gc
import importlib
import logging
import os
import random
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGCONT,
)
_FIRST_SEED = torch.default_generator.initial_seed()  # torch's default in every process


@contextmanager
def as_if_new(folder: Path, kept: Collection[Any] = ()) -> Iterator[None]:
    """Run a job in a folder, then undo its effects on the process.

    Args:
        folder: The job's working directory, which may contain its own modules.
        kept: Cached functions of the trainer whose result belongs to the process, not to a run.
    """
    with ExitStack() as stack:
        stack.callback(_collect_garbage)
        stack.callback(_forget_cached_results, kept)
        stack.callback(_forget_modules, folder)
        for undone in (_process(), _signals(), _logging(), _hydra(), _torch()):
            stack.enter_context(undone)
        os.chdir(folder)
        sys.path.insert(0, str(folder))  # as `python -m` does
        yield


@contextmanager
def _process() -> Iterator[None]:
    environment, arguments, path, place = dict(os.environ), sys.argv[:], sys.path[:], Path.cwd()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:], sys.path[:] = arguments, path
        os.chdir(place)


@contextmanager
def _signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: a handler that Python did not install
                signal.signal(number, handler)


@contextmanager
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in list(root.handlers):
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()


@contextmanager
def _hydra() -> Iterator[None]:
    state = copy.deepcopy(Singleton.get_state())
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        Singleton.set_state(state)


@contextmanager
def _torch() -> Iterator[None]:
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(_FIRST_SEED)
    np.random.seed()
    random.seed()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(kind)
        torch.set_deterministic_debug_mode("default")
        torch.set_grad_enabled(True)


def _forget_modules(folder: Path) -> None:
    inside = f"{folder}{os.sep}"
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(inside):
            del sys.modules[name]
    importlib.invalidate_caches()


def _collect_garbage() -> None:
    gc.collect()
    gc.freeze()  # mostly libraries are left: later collections can skip them


def _forget_cached_results(kept: Collection[Any]) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trainer":
            for value in vars(module).values():
                _forget(value, kept)
                for attribute in vars(value).values() if isinstance(value, type) else ():
                    _forget(attribute, kept)


def _forget(value: Any, kept: Collection[Any]) -> None:
    ours = isinstance(value, functools._lru_cache_wrapper) and value.__module__.startswith("trainer.")
    if ours and value not in kept:
        value.cache_clear()
