"""Text generation with a partitioned language model: the same engine, with a schedule of forward passes."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from trainer.activation import Activation
from trainer.config.schema import GenerateConfig
from trainer.optim.modes import evaluating
from trainer.pipeline.source import TokenSource
from trainer.run import Run
from trainer.schedule.assemble import generation_schedule
from trainer.seeds import derive


class Text(TokenSource):
    """A text that grows token by token: the first stage holds it, and the last samples the next token.

    Args:
        prompt: Its first tokens.
        tokens: The number of tokens to add.
        context: The model's largest number of input tokens; older ones are dropped.
        config: How to sample.
        seed: The seed for sampling.
    """

    def __init__(
        self, prompt: Sequence[int], tokens: int, context: int, config: GenerateConfig, seed: int
    ) -> None:
        self.tokens = list(prompt)
        self._prompt = len(prompt)
        self._count = tokens
        self._context = context
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)

    def signatures(self) -> Sequence[Hashable]:
        """Return the length of the model's input for every new token."""
        return [min(self._prompt + i, self._context) for i in range(self._count)]

    def inputs(self, micro_batch: int) -> Activation:
        """Return the tokens so far, [1, time]."""
        return torch.tensor([self.tokens[-self._context :]])

    def targets(self, micro_batch: int) -> Activation:
        """Return None: generation has no targets."""
        return None

    def sample(self, output: Activation) -> Tensor:
        """Return the next token, [1], from the logits [1, time, vocabulary]."""
        assert isinstance(output, Tensor)
        logits = output[0, -1].float().cpu()
        if self._config.temperature == 0:
            return logits.argmax().reshape(1)
        logits = logits / self._config.temperature
        if 0 < self._config.top_k < len(logits):
            logits[logits < logits.topk(self._config.top_k).values[-1]] = -torch.inf
        return torch.multinomial(logits.softmax(0), 1, generator=self._generator)

    def append(self, token: Tensor) -> None:
        """Append a token to the text."""
        self.tokens.append(int(token))


def generate(run: Run) -> str | None:
    """Continue `generate.prompt` by `generate.tokens` tokens, on the first replica.

    Returns:
        The text, including the prompt, on rank 0; None elsewhere.
    """
    config, tokenizer = run.config.generate, run.data.tokenizer
    if tokenizer is None or config.tokens == 0 or run.replica != 0:
        return None
    prompt = tokenizer.encode(config.prompt)
    text = Text(prompt, config.tokens, run.context(), config, derive(run.config.train.seed, "generate"))
    run.randomness.step, run.randomness.first_micro_batch = None, 0
    schedule = generation_schedule(run.plan.layout.placement, config.tokens)
    with evaluating(run.optimizer):
        run.engine.infer(run.actions(schedule), text)
    return tokenizer.decode(text.tokens) if run.world.rank == 0 else None
