"""`python -m tests.families [FAMILY ...]`: compares small models of transformers' families, cut and whole.

For every family: a random model of four blocks, in training mode without dropout, with a padded batch and
without padding; its logits and every gradient, layer by layer as a pipeline runs them, against those of
transformers. Without names all families run, and docs/families.md is written.
"""

import re
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.cutting import backward, built, forward, gradient_of
from tests.support.hf_models import tokens
from trainer.config.schema import HFConfig
from trainer.errors import UserError

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
VOCABULARY = 97
EQUAL = "equal"
# fmt: off
CAUSAL = (
    "bloom", "codegen", "cohere", "ctrl", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm4",
    "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "llama", "mamba", "mistral", "mixtral",
    "mpt", "nemotron", "olmo2", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "rwkv", "smollm3", "stablelm", "starcoder2", "xglm",
)
MASKED = (
    "albert", "bert", "camembert", "convbert", "deberta-v2", "distilbert", "electra", "ernie", "esm",
    "fnet", "modernbert", "mpnet", "rembert", "roberta", "xlm-roberta",
)
# fmt: on

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


def small_model(family: str) -> tuple[Any, Any]:
    """Return a small configuration of a family, and transformers' class for its models."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM  # noqa: PLC0415

    kind = CONFIG_MAPPING[family]
    known = {**kind().to_dict(), **getattr(kind, "attribute_map", {})}
    sizes = {name: value for name, value in SIZES.items() if name in known}
    try:
        config = kind(**sizes)
    except Exception:  # some derive these
        config = kind(**{n: v for n, v in sizes.items() if n not in ("head_dim", "num_key_value_heads")})
    for name in dir(config):
        if name.endswith(("pdrop", "dropout", "dropout_prob")) and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config, AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM


def compare(family: str, *, padded: bool) -> str:
    """Return `EQUAL`, or why not: the message of a refusal, or what differs."""
    from trainer.hf.build import hf  # noqa: PLC0415  (imports transformers)

    config, auto = small_model(family)
    with torch.device("meta"):
        config.architectures = [type(auto.from_config(config)).__name__]
    data = tokens(VOCABULARY, padded=padded)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        try:
            layers = built(hf(HFConfig(path=folder, load="config"), data))
        except UserError as error:
            return f"refused: {error}".replace(folder, "FOLDER")
        settings = type(config).from_pretrained(folder)
    settings.use_cache = False
    attention = layers[0].module.part.model.config._attn_implementation
    whole = auto.from_config(
        settings,
        dtype=torch.float32,
        attn_implementation="sdpa" if attention == "sdpa_unpadded" else attention,
        experts_implementation="batched_mm",
    ).train()
    whole.load_state_dict({name: t for layer in layers for name, t in layer.module.state_dict().items()})
    inputs = data.training.inputs(torch.arange(3))
    expected = (whole(**inputs) if padded else whole(inputs)).logits
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    for _ in range(2):  # the second time, blocks may be called alone
        for layer in layers:
            layer.module.zero_grad()
        output, tape = forward([layer for layer in layers if layer.module.train()], inputs)
        backward(tape, gradient)
        if not torch.equal(output, expected):
            return "the logits differ"
        for name, parameter in whole.named_parameters():
            if parameter.grad is not None:
                total = gradient_of(name, layers)
                if not torch.equal(total, parameter.grad):
                    error = ((total - parameter.grad).abs().max() / parameter.grad.abs().max()).item()
                    return f"equal but for the gradient of {name}, which is rounded otherwise ({error:.0e})"
    return EQUAL


def outcome(family: str) -> str:
    """Return the outcome of both batches in one line."""
    outcomes = []
    for padded in (False, True):
        try:
            outcomes.append(compare(family, padded=padded))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            outcomes.append(f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})")
    return (
        outcomes[0] if outcomes[0].partition("(")[0] == outcomes[1].partition("(")[0] else "; ".join(outcomes)
    )


_PAGE = """# Families of models

Small random models of transformers {version}, without dropout, with a padded batch and without padding: the
logits and every gradient of the layers, against those of the model as transformers runs it.
`python -m tests.families` repeats it and writes this page.

With [`model=hf`](any-module.md#hugging-faces-models) these {number} families have equal bits:
{equal}.

The others:

| family | outcome |
| --- | --- |
{others}
"""


def page(outcomes: dict[str, str], version: str) -> str:
    """Return the documentation's page."""
    equal = sorted(family for family, found in outcomes.items() if found == EQUAL)
    others = [f"| {family} | {found} |" for family, found in sorted(outcomes.items()) if found != EQUAL]
    listed = textwrap.fill(", ".join(equal), 120, break_on_hyphens=False)
    return _PAGE.format(version=version, number=len(equal), equal=listed, others="\n".join(others))


def listed_as_equal() -> list[str]:
    """Return the families that the page lists as equal."""
    _, _, rest = PAGE.read_text().partition("families have equal bits:\n")
    return re.findall(r"[\w-]+", rest.partition(".\n")[0])


def main(names: Sequence[str]) -> None:
    """Compare families and print the outcomes; write the page if all of them ran."""
    import transformers  # noqa: PLC0415

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    outcomes = {}
    for family in names or [*CAUSAL, *MASKED]:
        outcomes[family] = outcome(family)
        print(f"{family:12s} {outcomes[family]}", flush=True)
    if not names:
        PAGE.write_text(page(outcomes, transformers.__version__))


if __name__ == "__main__":
    main(sys.argv[1:])
