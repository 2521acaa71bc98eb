"""A small Llama with a tokenizer of its own, and conversations to fine-tune it on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# As in ChatML; `MARKED` also says what the assistant writes.
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def prompts(number: int) -> list[dict[str, Any]]:
    """Return sums with their results, of several lengths."""
    made = []
    for i in range(number):
        words = [NUMBERS[(i * k + k) % 10] for k in range(1, 2 + i % 4)]
        made.append({"prompt": " plus ".join(words) + " is", "completion": " " + NUMBERS[i % 10]})
    return made


def conversations(number: int) -> list[dict[str, Any]]:
    """Return the same as conversations of two answers."""
    return [
        {
            "messages": [
                {"role": "user", "content": each["prompt"]},
                {"role": "assistant", "content": each["completion"]},
                {"role": "user", "content": "sure?"},
                {"role": "assistant", "content": "yes, really" + each["completion"]},
            ]
        }
        for each in prompts(number)
    ]


def written(entries: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write a jsonl file."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """Return a tokenizer trained on the conversations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (takes seconds)

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|begin|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    library.train_from_iterator([json.dumps(entry) for entry in conversations(40)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=library, eos_token="<|end|>", bos_token="<|begin|>")
    made.chat_template = template
    return made


def llama(path: Path, template: str | None = TEMPLATE) -> Path:
    """Write a folder with a small Llama and its tokenizer."""
    import transformers  # noqa: PLC0415  (takes seconds)

    made = tokenizer(template)
    config = transformers.LlamaConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    made.save_pretrained(path)
    return path
