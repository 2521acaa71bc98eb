"""Small models of Hugging Face's, saved in several files, and data for them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.data.dataset import Data

VOCABULARY = 256
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
    "llama": {"num_key_value_heads": 1},
    "qwen2": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
    "bert": {},
}
COMMON = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


@cache
def folder(kind: str, root: Path) -> Path:
    """Return a folder with a small model, in several files."""
    import transformers  # noqa: PLC0415  (takes seconds)

    options = SMALL[kind] if kind == "gpt2" else COMMON | SMALL[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **options)
    masked = kind == "bert"
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    torch.manual_seed(1)
    path = root / kind
    auto.from_config(config).save_pretrained(path, max_shard_size="8KB")
    return path


class Tokens:
    """Three samples, which are their own targets; two begin with padding, where there is a mask."""

    def __init__(self, vocabulary: int, *, padded: bool) -> None:
        chance = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(3, vocabulary, (3, 12), generator=chance)
        self.mask = (torch.arange(12) >= torch.tensor([[5], [0], [2]])).long() if padded else None

    def __len__(self) -> int:
        return len(self.tokens)

    def inputs(self, samples: Any) -> Any:
        tokens = self.tokens[samples]
        return tokens if self.mask is None else {"input_ids": tokens, "attention_mask": self.mask[samples]}

    def targets(self, samples: Any) -> Tensor:
        return self.tokens[samples]


def tokens(vocabulary: int = VOCABULARY, *, padded: bool = False) -> Data:
    """Return the samples as data."""
    samples = Tokens(vocabulary, padded=padded)
    return Data(samples, samples, "tokens", vocabulary=vocabulary)
