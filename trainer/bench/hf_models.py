"""GPT-2 and Llama of transformers, small: as a folder, as a plain module, and as a list of layers by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.bench.gpt import Work
from trainer.data.dataset import Data
from trainer.models.gpt import TokenLoss
from trainer.models.model import Layer, Model, Tie

KINDS = ("gpt2", "llama")


def write(kind: str, work: Work, folder: Path) -> None:
    """Write a folder with the configuration of a model of a work's sizes, without dropout."""
    from transformers import AutoConfig  # noqa: PLC0415  (takes seconds)

    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {
            **{"n_embd": work.width, "n_layer": work.blocks, "n_head": work.heads},
            "n_positions": work.context,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            "activation_function": "gelu",  # as in the trainer's own GPT
            "architectures": ["GPT2LMHeadModel"],
        },
        "llama": {
            **{"hidden_size": work.width, "num_hidden_layers": work.blocks},
            **{"num_attention_heads": work.heads, "num_key_value_heads": work.heads},
            **{"intermediate_size": 8 * work.width // 3, "max_position_embeddings": work.context},
            "architectures": ["LlamaForCausalLM"],
        },
    }
    AutoConfig.for_model(kind, vocab_size=work.vocabulary, **sizes[kind]).save_pretrained(folder)


def plain(folder: str) -> nn.Module:
    """Return the model as transformers makes it, which returns logits."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    config = AutoConfig.from_pretrained(folder)
    config.use_cache = False
    return _Logits(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa"))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def layers(data: Data, path: str) -> Model:
    """Return the model as layers that somebody who knows it would write, of transformers' own modules.

    For `model=custom`: what `model=hf` has to keep up with.

    Args:
        data: Not used.
        path: The folder of `write`.
    """
    del data
    whole: Any = plain(path).model
    number: int = whole.config.num_hidden_layers
    if whole.config.model_type == "gpt2":
        body, blocks = whole.transformer, whole.transformer.h
        first, last = _FirstOfGPT2(body), _Last(body.ln_f, whole.lm_head)
        wrapped: list[nn.Module] = [_BlockOfGPT2(block) for block in blocks]
        ties: tuple[Tie, ...] = (Tie("head.weight", "first", "tokens.weight"),)
    else:
        body, blocks = whole.model, whole.model.layers
        first, last = body.embed_tokens, _Last(body.norm, whole.lm_head)
        wrapped = [_BlockOfLlama(block, body.rotary_emb) for block in blocks]
        ties = ()
    named = [("first", first), *((f"block.{i}", wrapped[i]) for i in range(number)), ("last", last)]
    return Model(
        tuple(Layer(name, _returns(module), ties if name == "last" else ()) for name, module in named),
        TokenLoss(),
    )


def _returns(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: module


class _FirstOfGPT2(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.tokens, self.positions, self.drop = body.wte, body.wpe, body.drop

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        embedded: Tensor = self.drop(self.tokens(tokens) + self.positions(positions))
        return embedded


class _BlockOfGPT2(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.block(x, use_cache=False)
        return output


class _BlockOfLlama(nn.Module):
    def __init__(self, block: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.rotary = rotary

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        angles = self.rotary(x, positions)
        output: Tensor = self.block(x, position_ids=positions, position_embeddings=angles, use_cache=False)
        return output


class _Last(nn.Module):
    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits
