"""A small random configuration of every family of causal and masked models that transformers knows."""

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 97
_MOST = 20_000_000  # parameters

# Under all the names that configurations have for these.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "global_attn_every_n_layers"), 2
    ),
    **dict.fromkeys(
        ("head_dim", "attn_head_dim", "sliding_window", "local_attention", "query_pre_attn_scalar"), 8
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_headdim", "mamba_d_state", "chunk_size"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "state_size": 8,
    "rotary_dim": 4,
    "decoder_sparse_step": 1,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "attention_types": [[["global", "local"], 2]],
}
OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minicpm3": {"num_key_value_heads": 4},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "whisper": {"decoder_attention_heads": 4},
    "dots1": {"n_group": 1, "topk_group": 1},
}
# Sizes that follow from others in some families, and are left to them where a configuration refuses ours.
_DERIVED = ("head_dim", "num_key_value_heads")


def families() -> dict[str, Any]:
    """Return transformers' class for the models of every family; a masked model where there are both."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM  # noqa: PLC0415
    from transformers.models.auto import modeling_auto as known  # noqa: PLC0415

    causal = dict.fromkeys(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM)
    masked = dict.fromkeys(known.MODEL_FOR_MASKED_LM_MAPPING_NAMES, AutoModelForMaskedLM)
    return dict(sorted((causal | masked).items()))


def small_model(family: str) -> tuple[Any, Any]:
    """Return a small configuration of a family, and transformers' class for its models."""
    return _small(family), families()[family]


def small_folder(family: str, root: Path) -> str | None:
    """Write a folder with a small configuration of a family; return why not if there is none.

    A family counts if transformers itself runs such a model.
    """
    try:
        config, auto = small_model(family)
        with torch.device("meta"):
            model = auto.from_config(config)
        size = sum(parameter.numel() for parameter in model.parameters())
        config.architectures = [type(model).__name__]
        if size > _MOST:
            return f"no small model: {size / 1e6:,.0f} million parameters"
        model = auto.from_config(config).eval()
        tokens = torch.randint(3, VOCABULARY, (2, 12))
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        if logits.shape[:2] != tokens.shape:
            return f"its logits are of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}"
        config.save_pretrained(root / family)
    except Exception as error:
        words = " ".join(str(error).split())[:150]
        return f"no small model: {type(error).__name__}: {words}"
    return None


def without_dropout(config: Any) -> None:
    """Set all dropout of a configuration to 0."""
    for name in dir(config):
        is_dropout = name.endswith(("pdrop", "dropout", "dropout_prob", "layerdrop"))
        if is_dropout and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)


def _small(family: str) -> Any:
    from transformers import CONFIG_MAPPING  # noqa: PLC0415

    kind = CONFIG_MAPPING[family]
    known = {**kind().to_dict(), **getattr(kind, "attribute_map", {})}
    sizes = {name: value for name, value in SIZES.items() if name in known} | OWN.get(family, {})
    try:
        config = kind(**sizes)
    except Exception:
        config = kind(**{name: value for name, value in sizes.items() if name not in _DERIVED})
    without_dropout(config)
    return config
