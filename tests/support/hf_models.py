"""Small models of Hugging Face's, saved in several files."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

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
