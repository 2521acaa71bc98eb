"""`python -m trainer.bench.hf_limits`: what torch's `pipeline()` cannot do with models of transformers.

Each line is tried here, in one process: the model is traced and split, and its parts are looked at or run.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.bench.gpt import Work
from trainer.bench.hf_models import KINDS, plain, write

_WORK = Work(blocks=2, width=32, heads=2, context=16)


def main() -> None:
    """Try everything, and print what came of it."""
    torch.manual_seed(0)
    for kind in KINDS:
        for what, attempt in _ATTEMPTS.items():
            with tempfile.TemporaryDirectory() as folder:
                write(kind, _WORK, Path(folder))
                try:
                    outcome = attempt(kind, folder)
                except Exception as error:  # whatever torch's tracing raises
                    outcome = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            print(f"{kind:6} {what:34} {outcome}", flush=True)


def _split(kind: str, model: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.distributed.pipelining import SplitPoint, pipeline  # noqa: PLC0415

    block = {"gpt2": "model.transformer.h.1", "llama": "model.model.layers.1"}[kind]
    return pipeline(model, mb_args=args, mb_kwargs=kwargs, split_spec={block: SplitPoint.BEGINNING})


def _tokens(samples: int = 2, length: int = 16) -> torch.Tensor:
    return torch.randint(_WORK.vocabulary, (samples, length))


def _ties(kind: str, folder: str) -> str:
    model: Any = plain(folder)
    model.model.config.tie_word_embeddings = True
    model.model.lm_head.weight = model.model.get_input_embeddings().weight
    split = _split(kind, model, _tokens())
    names = [
        f"part {number}: {name}"
        for number in range(2)
        for name, parameter in split.get_stage_module(number).named_parameters()
        if parameter.shape == (_WORK.vocabulary, _WORK.width)
    ]
    return f"the tied weight is {len(names)} parameters ({', '.join(names)}), each with a gradient of its own"


def _other(samples: int, length: int) -> Callable[[str, str], str]:
    def attempt(kind: str, folder: str) -> str:
        split = _split(kind, plain(folder), _tokens())
        split(_tokens(samples, length))
        return "works"

    return attempt


_ATTEMPTS = {
    "tied weights": _ties,
    "a micro-batch of another size": _other(1, 16),
    "samples of another length": _other(2, 12),
}

if __name__ == "__main__":
    main()
