"""The text that a language model writes at the end of a run."""

from trainer.generate.texts import Text
from trainer.generate.writer import Writer, ending
from trainer.run import Run


def generate(run: Run) -> str | None:
    """Continue `generate.prompt` by `generate.tokens` tokens, on the first replica.

    Returns:
        The text, including the prompt, on rank 0; None elsewhere.
    """
    config, tokenizer = run.config.generate, run.data.tokenizer
    if tokenizer is None or config.tokens == 0:
        return None
    writer = Writer(run, config, run.context())
    if run.replica != 0:
        return None
    prompt = tokenizer.encode(config.prompt)
    text = Text(0, prompt, len(prompt), config.tokens)
    writer.write([text], ending(config, tokenizer, []))
    return tokenizer.decode(text.tokens) if run.world.rank == 0 else None
