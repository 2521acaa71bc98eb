"""What `data` takes from the folder of `model=hf` unless told otherwise, without importing transformers."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_LONGEST = 1024  # tokens; more is asked for by name
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
# Their positions begin after the number of the padding token.
_AFTER_PADDING = ("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta")


def register(register_resolver: Any) -> None:
    """Register what `${positions:}` and `${own_tokenizer:}` mean.

    Args:
        register_resolver: `OmegaConf.register_new_resolver`.
    """
    register_resolver("positions", lambda _root_: positions(_folder(_root_)), replace=True)
    register_resolver("own_tokenizer", lambda _root_: own_tokenizer(_folder(_root_)), replace=True)


def positions(folder: Path | None) -> int:
    """Return how many tokens a sample has: as many as the model in a folder has positions, at most 1024."""
    try:
        config = json.loads((folder / _CONFIG).read_text()) if folder is not None else {}
    except (OSError, ValueError):
        config = {}  # the model's own message says what is wrong with it
    found = limit(config) if isinstance(config, dict) else None
    return min(found or _LONGEST, _LONGEST)


def limit(config: dict[str, Any]) -> int | None:
    """Return how many tokens the model of a config.json has positions for; None if it does not say."""
    found = next((config[key] for key in _POSITIONS if isinstance(config.get(key), int)), None)
    if found is not None and any(kind in str(config.get("model_type", "")) for kind in _AFTER_PADDING):
        found -= int(config.get("pad_token_id") or 0) + 1
    return None if found is None or found < 1 else int(found)


def own_tokenizer(folder: Path | None) -> str:
    """Return the folder, if it has a tokenizer, or "bytes"."""
    return str(folder) if folder is not None and (folder / _TOKENIZER).is_file() else "bytes"


def _folder(root: DictConfig) -> Path | None:
    """Return the folder of the configured model; None if it has none."""
    try:
        model = root.model
        return Path(str(model.path)) if model.name == "hf" else None
    except OmegaConfBaseException:  # `model.path` is missing, which is reported later
        return None
