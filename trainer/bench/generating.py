"""The ranks of `trainer.bench.generate`: they write the same texts in several ways, alternately.

one group      a group of prompts in flight at a time: while one stage computes, the others wait
in flight      several groups at a time
ceiling        every rank alone, with the whole model: what the cores do when none waits for another
"""

import copy
import json
import os
from typing import TYPE_CHECKING

from trainer.bench.statistics import median_interval
from trainer.command import run_command
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.distributed.world import World
    from trainer.generate.texts import Text
    from trainer.generate.writer import Writer

SIZES = "TRAINER_BENCH_GENERATE"  # the variable that tells them


def main() -> None:
    """Write texts, and print the rates."""
    run_command(_measure)


def _measure(config: Config, world: "World") -> None:
    """Measure; rank 0 prints."""
    from trainer.bench.gpt import random_tokens  # noqa: PLC0415  (after the configuration has been checked)
    from trainer.generate.writer import Writer  # noqa: PLC0415
    from trainer.run import Run  # noqa: PLC0415

    sizes: dict[str, int] = json.loads(os.environ[SIZES])
    data = random_tokens(context=8, vocabulary=256)
    config.batch.global_size = config.batch.micro_size = 1
    config.layout.stages = world.size
    together = Run(config, world, data)
    alone_config = copy.deepcopy(config)
    alone_config.layout.stages = 1
    alone_config.batch.global_size = world.size
    alone = Run(alone_config, world, data)
    writers: dict[str, Writer] = {}
    for name, run, in_flight in (
        ("one group", together, 1),
        ("in flight", together, sizes["groups"]),
        ("ceiling", alone, 1),
    ):
        asked = copy.deepcopy(config.generate)
        asked.in_flight = in_flight
        writers[name] = Writer(run, asked, None)
    rates: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(sizes["rounds"] + 1):  # the first one warms up
        for name, writer in writers.items():
            rate = _rate(writer, world, config.generate.tokens, sizes)
            rates[name] += [rate] if number else []
    if world.rank == 0:
        _report(rates, sizes, world.size)
    world.barrier()


def _rate(writer: "Writer", world: "World", tokens: int, sizes: dict[str, int]) -> float:
    """Return how many tokens all ranks write each second."""
    texts = _texts(tokens, sizes)
    world.barrier()
    writer.write(texts, _at_length)
    seconds = max(world.all_gather_objects(writer.seconds))
    tokens_of_one = sum(len(text.written) for text in texts)
    return writer.replicas * tokens_of_one / float(seconds)


def _texts(tokens: int, sizes: dict[str, int]) -> "list[Text]":
    """Return prompts of several lengths."""
    from trainer.generate.texts import Text  # noqa: PLC0415

    number = sizes["groups"] * sizes["batch"]
    lengths = [sizes["prompt"] - i % 4 for i in range(number)]
    return [Text(i, [(7 * i + j) % 256 for j in range(n)], n, tokens) for i, n in enumerate(lengths)]


def _at_length(text: "Text") -> None:
    if len(text.written) >= text.limit:
        text.finish = "length"


def _report(rates: dict[str, list[float]], sizes: dict[str, int], ranks: int) -> None:
    names = {
        "one group": f"{ranks} stages, 1 group of {sizes['batch']} in flight",
        "in flight": f"{ranks} stages, {sizes['groups']} groups of {sizes['batch']} in flight",
        "ceiling": f"{ranks} processes, each with the whole model",
    }
    for name, title in names.items():
        print(f"  {title:45} {median_interval(rates[name])} tokens/s")
    for other in ("one group", "ceiling"):
        ratio = median_interval([a / b for a, b in zip(rates["in flight"], rates[other], strict=True)])
        print(f"  {'several groups in flight / ' + other:45} {ratio}", flush=True)


if __name__ == "__main__":
    main()
