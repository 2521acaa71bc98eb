"""What an evaluation found, as a person reads it, and as a file."""

import json
from pathlib import Path

from trainer.checkpoint.trained import load_trained
from trainer.errors import UserError
from trainer.evaluation import Validation, evaluate
from trainer.metrics.best_effort import finite
from trainer.run import Run


def report(run: Run) -> None:
    """Evaluate a run's trained weights; rank 0 prints the results, and writes `evaluate.output`.

    Raises:
        UserError: There are no trained weights or no validation samples, or the file cannot be written.
    """
    origin = load_trained(run.config, run.layers, run.model, run.world)
    result = evaluate(run, run.config.evaluate.samples)
    if result is None:
        raise UserError("the data has no validation samples to evaluate on")
    if run.world.rank == 0:
        print("\n".join(_lines(run, origin, result)), flush=True)
        if run.config.evaluate.output is not None:
            _write(run.config.evaluate.output, origin, result)


def _lines(run: Run, origin: str, result: Validation) -> list[str]:
    layout = run.plan.layout
    whole = len(run.data.validation)
    terms = "" if result.count == result.samples else f", {result.count:,.0f} terms of the loss"
    values = {"loss": result.loss, **result.metrics}
    width = max(map(len, values))
    return [
        f"evaluated {origin}",
        f"on {result.samples:,} of {whole:,} validation samples{terms}; "
        f"{layout.replicas} x {layout.stages} stages",
        *(f"  {name.replace('_', ' '):{width}}  {value:.6g}" for name, value in values.items()),
    ]


def _write(output: str, origin: str, result: Validation) -> None:
    values = {"loss": result.loss, **result.metrics}
    numbers = {name: finite(value) for name, value in values.items()}
    content = {"model": origin, "samples": result.samples, "count": result.count, **numbers}
    try:
        Path(output).write_text(json.dumps(content, allow_nan=False, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"evaluate.output={output} cannot be written: {error}") from error
