"""What a rank does and for whom it waits, in the schedule's words."""

from collections.abc import Mapping, Sequence

from trainer.config.sizes import size_text
from trainer.distributed.heartbeat import Phase, Waits
from trainer.distributed.layout import Layout
from trainer.errors import listed
from trainer.schedule.actions import RECEIVES, Kind
from trainer.watch.seen import CUT, GONE, SILENT, UNKNOWN, Seen
from trainer.watch.verdict import Verdict, waits_for

_NAMED = 4  # ranks in one line
_WORK = {
    Kind.FORWARD: "the forward",
    Kind.BACKWARD: "the backward",
    Kind.BACKWARD_INPUT: "the gradient of the inputs",
    Kind.BACKWARD_WEIGHT: "the gradient of the weights",
    Kind.SAMPLE: "the choice of a token",
}
_MESSAGES = {
    Kind.SEND_ACTIVATION: "the activation",
    Kind.RECEIVE_ACTIVATION: "the activation",
    Kind.SEND_GRADIENT: "the gradient",
    Kind.RECEIVE_GRADIENT: "the gradient",
    Kind.SEND_TIED_GRADIENT: "a tied parameter's gradient",
    Kind.RECEIVE_TIED_GRADIENT: "a tied parameter's gradient",
    Kind.SEND_REDUCED_GRADIENT: "a tied parameter's averaged gradient",
    Kind.RECEIVE_REDUCED_GRADIENT: "a tied parameter's averaged gradient",
    Kind.SEND_TOKEN: "the token",
    Kind.RECEIVE_TOKEN: "the token",
}
_PHASES = {
    Phase.START: "its start",
    Phase.MPI: "the start of MPI",
    Phase.LOAD: "loading the data",
    Phase.BUILD: "building its layers",
    Phase.RESTORE: "loading a checkpoint",
    Phase.READ: "reading samples",
    Phase.TRAIN: "the step",
    Phase.UPDATE: "the optimizer's step",
    Phase.SAVE: "saving a checkpoint",
    Phase.VALIDATE: "the validation",
    Phase.GENERATE: "writing a text",
    Phase.REPORT: "what follows the step",
    Phase.IDLE: "the command",
}
_STATES = {
    "T": "is stopped (as by SIGSTOP)",
    "t": "is held by a debugger",
    "D": "waits in the kernel, as for a disk or a file system that does not answer",
    GONE: "has ended",
    SILENT: "does not answer, though its host does: it is stopped, or hangs in a library",
    CUT: "cannot be reached: its host is down, or a link is cut",
    UNKNOWN: "is not known: no connection to its host",
}


def name_of(seen: Seen) -> str:
    """Return such as "rank 5 (stage 1, replica 1, host h2)"."""
    stages = seen.place.get("stages", [])
    parts = [listed("stage", stages)] if stages else []
    if "replica" in seen.place:
        parts.append(f"replica {seen.place['replica']}")
    return f"rank {seen.rank} ({', '.join([*parts, f'host {seen.host}'])})"


def work_of(seen: Seen) -> str:
    """Return what a rank does, such as "the forward of micro-batch 3 of step 12"."""
    action = seen.action
    of_step = f" of step {seen.step}" if seen.step else ""
    if action is None:
        after = f" after step {seen.step}" if seen.step and seen.phase in (Phase.SAVE, Phase.VALIDATE) else ""
        in_step = of_step if seen.phase in (Phase.READ, Phase.UPDATE) else ""
        if seen.phase in (Phase.TRAIN, Phase.REPORT) and seen.step:
            return f"step {seen.step}" if seen.phase is Phase.TRAIN else f"what follows step {seen.step}"
        return f"{_PHASES[seen.phase]}{after or in_step}"
    micro_batch = f" of micro-batch {action.micro_batch}" if action.micro_batch >= 0 else ""
    if seen.phase in (Phase.VALIDATE, Phase.GENERATE, Phase.IDLE):
        of_step = " of the validation" if seen.phase is Phase.VALIDATE else ""
    if action.kind in _WORK:
        return f"{_WORK[action.kind]}{micro_batch}{of_step}"
    if action.kind in RECEIVES:
        return f"the receipt of {_MESSAGES[action.kind]}{micro_batch}{of_step}"
    if action.kind in _MESSAGES:
        return f"sending {_MESSAGES[action.kind]}{micro_batch}{of_step}"
    averaging = action.kind in (Kind.REDUCE_START, Kind.REDUCE_WAIT)
    return f"{'averaging the gradients' if averaging else 'the update'}{of_step}"


def doing(seen: Seen, ranks: Mapping[int, Seen], layout: Layout | None, world: int) -> str:
    """Return what a rank does, or for what and whom it waits."""
    if seen.state in (GONE, SILENT, CUT, UNKNOWN, "T", "t"):
        return _STATES[seen.state] + (f", in {work_of(seen)}" if seen.state in (GONE, "T", "t") else "")
    others = waits_for(seen, ranks, layout, world)
    if others:
        together = seen.action is None and seen.phase is not Phase.MPI
        where = f" in {work_of(seen)}" if together else ""
        return f"waits{where} for {_what(seen)}{listed('rank', others)}"
    if seen.phase is Phase.MPI and not seen.number:
        return "waits for MPI to start, which all ranks have to join"
    if seen.state == "D":
        return f"is in {work_of(seen)}, and {_STATES['D']}"
    return f"is in {work_of(seen)}{', computing' if seen.busy else ', and does not compute'}"


def _what(seen: Seen) -> str:
    action = seen.action
    if seen.waits is Waits.SENDS:
        return "the receipt of what it has sent, by "
    if seen.waits is not Waits.NOBODY:
        return ""
    if action is not None and action.kind in RECEIVES:
        micro_batch = f" of micro-batch {action.micro_batch}" if action.micro_batch >= 0 else ""
        return f"{_MESSAGES[action.kind]}{micro_batch} from "
    if action is not None and action.kind is Kind.REDUCE_WAIT:
        return "the averaged gradients, with "
    return ""


def headline(verdict: Verdict, ranks: Mapping[int, Seen], layout: Layout | None, world: int) -> str:
    """Return what keeps ranks from their work, in one line."""
    seconds = f"{verdict.seconds:.0f} s"
    causes = [ranks[rank] for rank in verdict.causes]
    if causes[0].phase is Phase.MPI and causes[0].state not in _STATES:
        here = [rank for rank, seen in sorted(ranks.items()) if seen.phase is Phase.MPI]
        who = f"{listed('rank', here)} of host {causes[0].host} wait for the other ranks of {world}"
        return f"no progress for {seconds}: MPI has not started, {who}"
    if verdict.circle:
        names = ", ".join(map(name_of, causes[:_NAMED])) + (", ..." if len(causes) > _NAMED else "")
        hosts = {seen.host for seen in causes}
        link = " (is the network between their hosts in order?)" if len(hosts) > 1 else ""
        return f"no progress for {seconds}: {names} wait for one another{link}"
    one = f"{name_of(causes[0])} {doing(causes[0], ranks, layout, world)}"
    others = f"; so for {listed('rank', [seen.rank for seen in causes[1:]])}" if causes[1:] else ""
    waiting = sorted(set(ranks) - set(verdict.causes))
    wait = (
        f"; {'the others wait' if len(waiting) > 1 else f'rank {waiting[0]} waits'} for it" if waiting else ""
    )
    return f"no progress for {seconds}: {one}{others}{wait}"


def table(ranks: Mapping[int, Seen], layout: Layout | None, world: int) -> list[str]:
    """Return a line for each rank."""
    lines = []
    for _, seen in sorted(ranks.items()):
        since = "" if seen.still == float("inf") else f", for {seen.still:.0f} s"
        lines.append(f"  {name_of(seen)} {doing(seen, ranks, layout, world)}{since}")
    return lines


def held(seen: Seen) -> str:
    """Return what a rank held in memory, such as "it held block.2 to head and 148 MiB"."""
    layers = seen.place.get("layers")
    what = [f"the layers {layers}"] if layers else []
    if seen.peak:
        what.append(f"{size_text(seen.peak)} at most so far")
    planned = seen.place.get("planned")
    plan = f" ({size_text(int(planned))} of it by the plan)" if planned else ""
    return f"it held {' and '.join(what)}{plan}" if what else ""


def stack_lines(text: str, most: int) -> Sequence[str]:
    """Return the innermost lines of the main thread in what faulthandler has written."""
    blocks = text.split("\n\n")
    main = next((block for block in blocks if block.startswith("Current thread")), blocks[-1])
    return [line.strip() for line in main.splitlines()[1:] if line.startswith("  File ")][:most]
