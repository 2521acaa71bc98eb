"""`python -m tests.generating [FAMILY ...]`: compares what small models write, cut, with transformers.

For every family of causal models: a padded batch, greedy, on one stage, two and four. docs/generation.md
lists the families that write the same tokens and keep keys and values.
"""

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.families.configurations import VOCABULARY, families, small_model
from tests.support.hf_models import tokens
from tests.support.writing import writer, written
from trainer.config.schema import GenerateConfig, HFConfig

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [*range(13, 25)], [25]]
TOKENS = 20  # the windows of families that have some are 8 long
CUTS = [[5], [2, 3], [1, 1, 1, 2]]  # what comes before the first block is a layer too


def saved(family: str, folder: Path) -> Any:
    """Save a small model, whose likeliest tokens differ, and return it."""
    config, auto = small_model(family)
    torch.manual_seed(1)
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    model.save_pretrained(folder)
    return model


def padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts as one batch, with padding at the left, and its mask."""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(masks)


def expected(model: Any, **options: Any) -> list[list[int]]:
    """Return what transformers writes after the prompts."""
    batch, mask = padded(PROMPTS)
    options = {"do_sample": False, "eos_token_id": None, **options}
    found = model.generate(batch, attention_mask=mask, max_new_tokens=TOKENS, pad_token_id=0, **options)
    rows: list[list[int]] = found[:, batch.shape[1] :].tolist()
    return rows


def outcome(family: str) -> str:
    """Return how a family does, in a line."""
    from trainer.hf.build import hf  # noqa: PLC0415  (imports transformers)

    config = GenerateConfig(tokens=TOKENS, temperature=0, batch=len(PROMPTS), in_flight=1)
    with tempfile.TemporaryDirectory() as folder:
        wanted = expected(saved(family, Path(folder)))
        path = HFConfig(path=folder)
        layers = hf(path, tokens(VOCABULARY))
        for sizes in CUTS:
            found = writer(layers, sizes, config, None, model_config=path)
            if [text.written for text in written(found, PROMPTS, config)] != wanted:
                return f"other tokens on {len(sizes)} stages"
    return "equal" if found.cached else "equal, but keeps nothing"


def main(names: Sequence[str]) -> None:
    """Compare families and print the outcomes."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for family in names or [name for name, auto in families().items() if "Causal" in auto.__name__]:
        try:
            found = outcome(family)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        print(f"{family:12s} {found}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
