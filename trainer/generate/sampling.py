"""The choice of the next token, for every text on its own.

What is drawn depends on the seed, the text's number and the token's position in it, and on nothing else: not
on the layout, on the texts beside it, or on how many are in flight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.config.schema import GenerateConfig
from trainer.generate.texts import Text
from trainer.seeds import derive


class Sampler:
    """Chooses tokens.

    Args:
        config: How.
        seed: The seed.
    """

    def __init__(self, config: GenerateConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._generator = torch.Generator()

    def choose(self, logits: Tensor, texts: Sequence[Text], earlier: Sequence[Sequence[int]]) -> Tensor:
        """Return the next token of each text, int64 [batch].

        Args:
            logits: [batch, vocabulary].
            texts: The texts.
            earlier: What follows each of them already.
        """
        logits = logits.float().cpu()
        if self._config.temperature == 0 and self._config.repetition_penalty == 1:
            return logits.argmax(-1)
        rows = [self._choose(row, text, more) for row, text, more in zip(logits, texts, earlier, strict=True)]
        return torch.stack(rows)

    def _choose(self, logits: Tensor, text: Text, more: Sequence[int]) -> Tensor:
        """Return the next token, 0-dimensional, from the logits [vocabulary]."""
        config, position = self._config, len(text.tokens) + len(more)
        if config.repetition_penalty != 1:
            logits = penalised(logits, [*text.tokens, *more], config.repetition_penalty)
        if config.temperature == 0:
            return logits.argmax()
        logits = nucleus(likeliest(logits / config.temperature, config.top_k), config.top_p)
        self._generator.manual_seed(derive(self._seed, "generate", text.index, position))
        return torch.multinomial(logits.softmax(0), 1, generator=self._generator)[0]


def penalised(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    """Return logits [vocabulary] in which tokens that a text has are less likely.

    CTRL (Keskar et al., 2019, https://arxiv.org/abs/1909.05858, section 4.1), as transformers does it:
    positive logits are divided by the penalty, and negative ones multiplied.
    """
    seen = torch.tensor(sorted(set(tokens)))
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))


def likeliest(logits: Tensor, top_k: int) -> Tensor:
    """Return logits [vocabulary] of which only the highest remain, and those equal to the last of them."""
    if not 0 < top_k < len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return logits [vocabulary] of which only the fewest remain that are worth `top_p` together.

    Holtzman et al., 2019 (https://arxiv.org/abs/1904.09751).
    """
    if top_p >= 1:
        return logits
    ordered, places = logits.sort(descending=True, stable=True)
    shares = ordered.softmax(0)
    beyond = shares.cumsum(0) - shares >= top_p  # those before them are worth it without them
    return logits.index_fill(0, places[beyond], -torch.inf)
