"""From prompts to texts, on every rank of a replica."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from trainer.config.schema import GenerateConfig, HFConfig
from trainer.data.dataset import Tokenizer
from trainer.generate.rounds import Round, Turn, turns_of
from trainer.generate.sampling import Sampler
from trainer.generate.stages import DecodingStage, LayersDecoder
from trainer.generate.texts import Batches, Text
from trainer.models.decoding import Decoder, Decodes
from trainer.optim.modes import evaluating
from trainer.pipeline.precision import COMPUTE_TYPES, Precision
from trainer.pipeline.stage import Stage
from trainer.run import Run
from trainer.schedule.actions import Action
from trainer.schedule.assemble import generation_schedule

_KEPT_SCHEDULES = 64  # rounds repeat
_IN_FLIGHT = 4  # groups; the same for few stages, so that they write the same bits


class Writer:
    """Writes texts with this replica's model.

    Args:
        run: The run, with the weights to use.
        config: How to write.
        context: The most tokens that the model takes; None: no limit.

    Attributes:
        cached: Whether the model's layers keep keys and values.
        stages: This rank's stages with their caches, by number, where they do.
        seconds: How long the latest call of `write` took.
    """

    def __init__(self, run: Run, config: GenerateConfig, context: int | None) -> None:
        self.seconds = 0.0
        self._run = run
        self._config = config
        self._context = context
        self.stages: Mapping[int, DecodingStage] = _decoding_stages(run) if config.cache else {}
        # Every rank of the world holds some of the layers.
        self.cached = all(run.world.all_gather_objects(len(self.stages) == len(run.stages)))
        self._actions = lru_cache(_KEPT_SCHEDULES)(self._list_of)

    @property
    def replicas(self) -> int:
        """Return the number of replicas, of which each writes texts of its own."""
        return self._run.plan.layout.replicas

    def write(self, texts: Sequence[Text], finish: Callable[[Text], None]) -> None:
        """Continue texts to their ends; every rank of the replica calls this with the same ones.

        Args:
            texts: The prompts.
            finish: As of `Batches.end_round`.
        """
        run = self._run
        batch, in_flight = self._groups(len(texts))
        batches = Batches(texts, batch, in_flight, self._context, cached=self.cached)
        sampler = Sampler(self._config, run.config.train.seed)
        run.randomness.step, run.randomness.first_micro_batch = None, 0
        start = time.perf_counter()
        with evaluating(run.optimizer):
            while parts := batches.next_round():
                turns = turns_of(parts)
                source = Round(turns, sampler, whole=not self.cached, context=self._context)
                self._run_turns(turns, source)
                mine = source.written if run.holds_last_stage else None
                written = next(filter(None, run.groups.model_parallel.all_gather_objects(mine)))
                batches.end_round(parts, [written[part.number] for part in parts], finish)
        for stage in self.stages.values():
            stage.begin(())
        self.seconds = time.perf_counter() - start

    def _run_turns(self, turns: Sequence[Turn], source: Round) -> None:
        actions = self._actions(tuple(turn.part.number for turn in turns))
        if not self.cached:
            self._run.engine.infer(actions, source)
            return
        for stage in self.stages.values():
            stage.begin(turns)
        self._run.engine.infer(actions, source, self.stages)

    def _list_of(self, texts: tuple[int, ...]) -> tuple[Action, ...]:
        """Return this rank's list of the schedule of a round, given the group of each turn."""
        placement = self._run.plan.layout.placement
        return self._run.actions(generation_schedule(placement, len(texts), texts))

    def _groups(self, texts: int) -> tuple[int, int]:
        """Return the size of a group, and how many are in flight."""
        config, stages = self._config, self._run.plan.layout.stages
        auto = config.in_flight == "auto"
        most = max(_IN_FLIGHT, stages) if auto else config.in_flight
        at_least = min(stages if auto else most, texts)
        if not self.cached:
            return 1, max(1, min(most, texts))  # rows of one length need no padding
        groups = max(at_least, min(most, -(-texts // config.batch)))
        return min(config.batch, -(-texts // groups)) if texts else 1, groups


def ending(config: GenerateConfig, tokenizer: Tokenizer, ends: Sequence[int]) -> Callable[[Text], None]:
    """Return what cuts off what follows the end of a text, and says why it ended.

    Args:
        config: The stop strings.
        tokenizer: Turns tokens into text.
        ends: The tokens that end a text; it does not contain them.
    """

    def finish(text: Text) -> None:
        written, reason = text.written, None
        if len(written) >= text.limit:
            written, reason = written[: text.limit], "length"
        at = next((i for i, token in enumerate(written) if token in ends), None)
        if at is not None:
            written, reason = written[:at], "eos"
        if config.stop and (stopped := stop_at(written, config.stop, tokenizer)) is not None:
            written, reason = written[:stopped], "stop"
        text.tokens, text.finish = text.tokens[: text.prompt] + written, reason

    return finish


def stop_at(tokens: Sequence[int], stop: Sequence[str], tokenizer: Tokenizer) -> int | None:
    """Return the least number of tokens whose text has a stop string; None if all of it has none."""

    def stops(number: int) -> bool:
        text = tokenizer.decode(list(tokens[:number]))
        return any(each in text for each in stop)

    if not stops(len(tokens)):
        return None
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stops(middle) else (middle + 1, high)
    return low


def _decoding_stages(run: Run) -> dict[int, DecodingStage]:
    """Return this rank's stages with caches; fewer than it has if its layers cannot keep any."""
    found = {number: _decoder(run, stage, number) for number, stage in run.stages.items()}
    return {
        number: DecodingStage(decoder, run.stages[number].device)
        for number, decoder in found.items()
        if decoder is not None
    }


def _decoder(run: Run, stage: Stage, number: int) -> Decoder | None:
    precision = Precision(COMPUTE_TYPES[run.config.precision])
    last = number == run.plan.layout.stages - 1
    if isinstance(run.config.model, HFConfig):
        from trainer.hf.decoding import decoder_of  # noqa: PLC0415  (imports transformers)

        return decoder_of([layer.module for layer in stage.layers], precision, stage.device, last=last)
    if all(isinstance(layer.module, Decodes) for layer in stage.layers):
        return LayersDecoder(stage.layers, precision, stage.device, last=last)
    return None
