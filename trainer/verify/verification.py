"""Train a few steps as launched; compare each with a single process, or with another launch's digests."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from trainer.checkpoint.warm_start import warm_start
from trainer.evaluation import evaluate
from trainer.metrics.headline import headline
from trainer.metrics.progress import write_lines
from trainer.models.model import Model
from trainer.models.own import build_own
from trainer.run import Run
from trainer.step import StepResult, TrainStep
from trainer.train import last_step
from trainer.verify.bisection import find_operation
from trainer.verify.comparison import Cell, Comparison
from trainer.verify.digest_file import DigestFile, StepDigests
from trainer.verify.reference import Reference
from trainer.verify.values import Values

_SHOWN = 50  # failures; of more, only the number is printed
LOSS, NORM, VALIDATION = "loss", "gradient norm", "validation loss"


def verify(run: Run) -> bool:
    """Train `verify.steps` steps and print a table of the differences from the reference.

    Returns:
        Whether everything is within its bound; the same on every rank.
    """
    config, values = run.config.verify, Values(run)
    comparison, replicas = Comparison(), Comparison()
    seen = DigestFile.of(run.config, run.plan.layout.replicas, run.threads)
    warm_start(run.config.checkpoint, run.layers, run.model)
    judge = _judge(run, values, seen, comparison)
    train_step = TrainStep(run, last_step(run, 0, 0), values.keep_gradients)
    for step in range(1, config.steps + 1):
        result = train_step.run(step, (step - 1) * run.config.batch.global_size)
        everyone = run.world.all_gather_objects(values.digests())
        _compare_replicas(run, step, everyone, replicas)
        digests = {key: digest for theirs in everyone for key, digest in theirs.items()}
        seen.steps.append(StepDigests(step, result.summary.loss, result.summary.grad_norm, digests))
        judge.step(step, result)
    judge.end()
    run.reader.end()
    if config.save is not None and run.world.rank == 0:
        seen.write(Path(config.save))
    failed: bool = run.world.all_gather_objects(bool(comparison.failures() + replicas.failures()))[0]
    reason = judge.reason() if failed else None
    if run.world.rank == 0:
        _report(run, judge.words, comparison, replicas, reason)
    return not failed


class _Judge(Protocol):
    """The reference that a launch is compared with."""

    words: str

    def step(self, step: int, result: StepResult) -> None:
        """Compare a step; every rank must call it."""

    def end(self) -> None:
        """Compare the final values after the last step; every rank must call it."""

    def reason(self) -> str | None:
        """Return, on rank 0, why something failed, if that can be found; every rank must call it."""


def _judge(run: Run, values: Values, seen: DigestFile, comparison: Comparison) -> _Judge:
    against = run.config.verify.against
    if against == "process":
        return _OneProcess(run, values, comparison)
    if against == "none":
        return _NoReference()
    return _Digests(seen, comparison, run.config.verify.steps, Path(against))


class _OneProcess:
    """A plain loop over the same replicas and micro-batches, in the process of rank 0."""

    words = "one process"

    def __init__(self, run: Run, values: Values, comparison: Comparison) -> None:
        self._run = run
        self._values = values
        self._comparison = comparison
        self._reference: Reference | None = None
        if run.world.rank == 0:
            self._reference = Reference(
                run.config,
                _with_own_modules(run.model),
                run.data,
                replicas=run.plan.layout.replicas,
                steps=last_step(run, 0, 0),
                device=run.devices[0],
            )
            comparison.expect([LOSS, NORM, VALIDATION, *self._reference.values("weight")])

    def step(self, step: int, result: StepResult) -> None:
        """Compare the loss and the gradients, then the norm and the weights that follow from them.

        After comparing gradients, the reference adopts the launch's. Adam turns a gradient that is zero
        except for rounding into a step as large as the learning rate, so no useful bound exists for weights
        that follow from differently rounded gradients. From the same gradients, the norm and the weights must
        have equal bits. Likewise it adopts the running statistics once they are compared, so the validation
        loss must have equal bits.
        """
        run, reference, comparison = self._run, self._reference, self._comparison
        if reference is not None:
            size = run.config.batch.global_size
            loss = reference.step(step, run.order.samples((step - 1) * size, size))
            comparison.number(step, LOSS, seen=result.summary.loss, expected=loss)
        self._compare(step, "gradient")
        if reference is not None:
            comparison.number(step, NORM, seen=result.summary.grad_norm, expected=reference.update(step))
        self._compare(step, "weight")
        self._compare(step, "buffer")

    def end(self) -> None:
        """Compare the loss on validation samples."""
        run, steps = self._run, self._run.config.verify.steps
        samples = min(run.config.eval.samples or len(run.data.validation), len(run.data.validation))
        seen = evaluate(run, samples)
        if self._reference is not None and seen is not None:
            expected = self._reference.validate(samples)
            self._comparison.number(steps, VALIDATION, seen=seen.loss, expected=expected)

    def reason(self) -> str | None:
        """Name the first operation that differs by itself, or else where the differences begin."""
        modules = {} if self._reference is None else self._reference.modules
        steps, cells = self._run.config.verify.steps, self._comparison.cells
        other_weights = {
            name.partition("/")[0]
            for name, of in cells.items()
            if "weight" in of and of["weight"].failed_at is not None
        }
        found = find_operation(self._run, modules, steps, other_weights)
        return found if found is not None or self._reference is None else _where_it_begins(cells)

    def _compare(self, step: int, kind: str) -> None:
        """Compare the gradients, weights or buffers of all layers, one layer at a time."""
        for layer, seen in self._values.gather(kind):
            assert self._reference is not None
            expected = self._reference.values(kind, layer)
            for name in expected | seen:
                self._comparison.tensor(
                    step,
                    name,
                    kind,
                    seen=seen.get(name),
                    expected=expected.get(name),
                    allowed=self._reference.allowed(kind, name),
                )
            if kind == "gradient":
                self._reference.take_gradients(seen)
            if kind == "buffer":
                self._reference.take_statistics(seen)


class _Digests:
    """Digests that another launch wrote with `verify.save`."""

    def __init__(self, seen: DigestFile, comparison: Comparison, steps: int, path: Path) -> None:
        self.words = str(path)
        self._seen = seen
        self._comparison = comparison
        self._expected = DigestFile.read(path)
        seen.check_comparable(self._expected, steps, path)

    def step(self, step: int, result: StepResult) -> None:
        """Compare the loss, the norm and every digest."""
        seen, expected = self._seen.steps[-1], self._expected.steps[step - 1]
        self._comparison.number(step, LOSS, seen=seen.loss, expected=expected.loss)
        self._comparison.number(step, NORM, seen=seen.grad_norm, expected=expected.grad_norm)
        for key in expected.digests | seen.digests:
            kind, _, name = key.partition(" ")
            self._comparison.digest(
                step, name, kind, seen=seen.digests.get(key), expected=expected.digests.get(key)
            )

    def end(self) -> None:
        """Do nothing: the validation loss follows from the weights."""

    def reason(self) -> str | None:
        """Return None: the other launch has ended."""
        return None


class _NoReference:
    """No reference: only replicas are compared."""

    words = "no reference, each replica against the first"

    def step(self, step: int, result: StepResult) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def reason(self) -> str | None:
        """Return None."""
        return None


def _compare_replicas(run: Run, step: int, everyone: list[dict[str, str]], comparison: Comparison) -> None:
    """Compare every replica with the first: all must have equal bits, except for what forwards change."""
    layout = run.plan.layout
    for rank, theirs in enumerate(everyone):
        first = everyone[layout.group_rank(rank)]
        for key in theirs | first:
            if theirs.get(key) != first.get(key):
                kind, _, name = key.partition(" ")
                words = f"{kind} on replica {layout.replica(rank)} (rank {rank})"
                promised = kind != "buffer"  # each replica changes them by its own micro-batches
                comparison.digest(
                    step, name, words, seen=theirs.get(key), expected=first.get(key), promised=promised
                )


def _with_own_modules(model: Model) -> Model:
    """Return the model with layers that never return the launch's modules, even if those existed before."""
    return replace(
        model, layers=tuple(replace(layer, build=partial(build_own, layer.build)) for layer in model.layers)
    )


def _where_it_begins(cells: Mapping[str, Mapping[str, Cell]]) -> str | None:
    """Return the last layer whose gradient failed, from which a backward passes differences on."""
    if any(cell.failed_at for cell in cells.get(LOSS, {}).values()):
        return None
    failed = [(of["gradient"].failed_at, name) for name, of in cells.items() if "gradient" in of]
    steps = [step for step, _ in failed if step is not None]
    if not steps:
        return None
    last = [name for step, name in failed if step == min(steps)][-1].partition("/")[0]
    return f"the losses are equal; going backwards, the first layer whose gradients differ is {last!r}"


def _report(run: Run, against: str, comparison: Comparison, replicas: Comparison, reason: str | None) -> None:
    """Print the table, and the failures or that there are none."""
    steps, failures = run.config.verify.steps, [*comparison.failures(), *replicas.failures()]
    lines = [headline(run), f"{steps} step{'s' * (steps > 1)} against {against}", ""]
    lines += [*comparison.table().splitlines(), ""]
    lines += [f"FAILED  {failure}" for failure in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        lines.append(f"FAILED  and {len(failures) - _SHOWN} more")
    if reason is not None:
        lines.append(f"found: {reason}")
    free = dict.fromkeys([*comparison.unpromised(), *replicas.unpromised()])
    if free:
        lines.append(f"note: a buffer that a forward changes may depend on the layout: {', '.join(free)}")
    if not failures:
        lines.append(f"the layout does not change the training: everything is equal {comparison.verdict()}")
    write_lines("\n".join(lines))
