"""`python -m trainer.bench.generate`: what it brings to have several groups of prompts in flight.

Stages write texts with one group of prompts in flight, and with several, alternately; and every rank writes
them alone with the whole model, which is the ceiling on these cores. Weights are random.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from trainer.bench.generating import SIZES
from trainer.bench.processes import exit_on_sigterm, run

_DEFAULTS = {
    "ranks": 2,
    "groups": 4,
    "batch": 8,
    "tokens": 32,
    "prompt": 16,
    "rounds": 7,
    "blocks": 8,
    "width": 256,
}


def main() -> int:
    """Start the ranks, and print what they measure."""
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.generate", description=__doc__)
    for name, default in _DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", choices=("gpt", "llama"), default="llama", help="llama needs transformers")
    given = vars(parser.parse_args())
    exit_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("horovodrun", "-np", str(given["ranks"]), sys.executable, "-m", "trainer.bench.generating"),
            *("experiment=none", "train.steps=1", "data=text", "data.path=none", "data.context=8"),
            *(f"generate.tokens={given['tokens']}", f"generate.batch={given['batch']}"),
            *("generate.temperature=0", "threads=1", "device=cpu"),
            *_model(given["model"], given["blocks"], given["width"], Path(folder)),
        ]
        sizes = {name: given[name] for name in _DEFAULTS}
        code, out, err = run(command, os.environ | {SIZES: json.dumps(sizes)})
    print(
        f"{given['model']}, {given['blocks']} blocks of width {given['width']}, {given['tokens']} tokens "
        f"after prompts of up to {given['prompt']}, greedy; median (95 % interval)"
    )
    print(out, end="")
    if code:
        print(err, end="", file=sys.stderr)
    return code


def _model(name: str, blocks: int, width: int, folder: Path) -> list[str]:
    """Return the overrides for a model with random weights."""
    if name == "gpt":
        return [
            *("model=gpt", f"model.blocks={blocks}", f"model.width={width}", "model.heads=4"),
            *("model.context=1024", "model.dropout=0"),
        ]
    from transformers import LlamaConfig  # noqa: PLC0415

    LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=256,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
    ).save_pretrained(folder)
    return ["model=hf", f"model.path={folder}", "model.load=config"]


if __name__ == "__main__":
    sys.exit(main())
