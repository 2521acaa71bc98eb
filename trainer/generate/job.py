"""The command: prompts in, texts out."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.schema import Config
from trainer.distributed.layout import share
from trainer.distributed.world import World
from trainer.errors import UserError
from trainer.generate.model import Trained, load_model
from trainer.generate.prompts import Prompt, read_prompts
from trainer.generate.texts import Text
from trainer.generate.writer import Writer, ending


def generate(config: Config, world: World) -> None:
    """Continue all prompts; rank 0 writes the texts, in the order of the prompts.

    Raises:
        UserError: The prompts, the model or the output cannot be used.
    """
    prompts = _shared_prompts(config, world)
    model = load_model(config, world)
    texts = _encoded(prompts, model, config.generate.tokens)
    replicas = model.run.plan.layout.replicas
    mine = [texts[i] for i in share(len(texts), replicas, model.run.replica)]
    writer = Writer(model.run, config.generate, model.context)
    if world.rank == 0 and config.generate.cache and not writer.cached:
        _say("this model's layers keep no keys and values: every token is computed from all before it")
    ends = () if config.generate.ignore_eos else _ends(prompts, model)
    world.barrier()  # so that all replicas start at the same time
    writer.write(mine, ending(config.generate, model.tokenizer, ends))
    leads = model.run.groups.model_parallel.rank == 0
    everyone = world.all_gather_objects((mine if leads else [], writer.seconds))
    if world.rank == 0:
        done = [text for theirs, _ in everyone for text in theirs]
        _write(config, [_record(prompt, text, model) for prompt, text in zip(prompts, done, strict=True)])
        seconds, tokens = max(seconds for _, seconds in everyone), sum(len(text.written) for text in done)
        layout = (
            f"{replicas} x {model.run.plan.layout.stages} stages"
            if replicas > 1
            else (f"{model.run.plan.layout.stages} stages")
        )
        _say(
            f"{len(done)} texts, {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s "
            f"({layout}, weights from {model.origin})"
        )


def _shared_prompts(config: Config, world: World) -> list[Prompt]:
    """Return the prompts, which rank 0 reads, on every rank."""
    found: list[Prompt] | UserError = []
    if world.rank == 0:
        try:
            found = read_prompts(config.generate)
        except UserError as error:
            found = error
    found = world.all_gather_objects(found)[0]
    if isinstance(found, UserError):
        raise found
    return found


def _encoded(prompts: Sequence[Prompt], model: Trained, tokens: int) -> list[Text]:
    """Return the texts to continue.

    Raises:
        UserError: A prompt has no tokens, more than the model takes, or one that it does not know.
    """
    texts = []
    for index, prompt in enumerate(prompts):
        encoded = _tokens(prompt, model)
        if not encoded:
            raise UserError(f"{prompt.where} has no tokens: begin texts with at least one")
        if model.context is not None and len(encoded) > model.context:
            raise UserError(
                f"{prompt.where} has {len(encoded)} tokens, and the model takes {model.context} at most: "
                "shorten it"
            )
        if max(encoded) >= model.vocabulary:
            raise UserError(
                f"{prompt.where} has the token {max(encoded)}, and the model knows {model.vocabulary}: use "
                "the tokenizer that it was trained with"
            )
        texts.append(Text(index, encoded, len(encoded), tokens))
    return texts


def _ends(prompts: Sequence[Prompt], model: Trained) -> list[int]:
    """Return the tokens that end a text; of conversations also the tokenizer's, which training adds."""
    own: int | None = getattr(model.tokenizer, "end", None)
    if own is None or not any(prompt.messages for prompt in prompts):
        return list(model.ends)
    return [*model.ends, own]


def _tokens(prompt: Prompt, model: Trained) -> list[int]:
    """Return a prompt's tokens; those of a conversation are in the words of the tokenizer's chat template."""
    if prompt.messages is None:
        return list(model.tokenizer.encode(prompt.text))
    converse = getattr(model.tokenizer, "converse", None)
    if converse is None:
        raise UserError(
            f"{prompt.where} is a conversation, and only the tokenizer of a Hugging Face folder (model=hf) "
            'knows how to write one: give {"prompt": ...}'
        )
    try:
        encoded: list[int] = converse(prompt.messages)
    except UserError as error:
        raise UserError(f"{prompt.where}: {error}") from error
    return encoded


def _record(prompt: Prompt, text: Text, model: Trained) -> dict[str, Any]:
    """Return what is written for a text; a stop string and what follows it are left out."""
    written = model.tokenizer.decode(text.written)
    if text.finish == "stop":
        starts = [at for each in model.run.config.generate.stop if (at := written.find(each)) >= 0]
        written = written[: min(starts)]
    return {
        **prompt.given,
        **({} if prompt.messages else {"prompt": prompt.text}),
        "text": written,
        "tokens": text.written,
        "finish_reason": text.finish,
    }


def _write(config: Config, records: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if config.generate.output is None:
        sys.stdout.write(lines)
        sys.stdout.flush()
        return
    try:
        Path(config.generate.output).write_text(lines, "utf-8")
    except OSError as error:
        raise UserError(f"generate.output={config.generate.output} cannot be written: {error}") from error


def _say(text: str) -> None:
    print(f"trainer: {text}", file=sys.stderr, flush=True)
