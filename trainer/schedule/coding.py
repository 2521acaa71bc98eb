"""An action as one number, which a rank can store at once."""

from trainer.schedule.actions import Action, Kind

_KINDS = tuple(Kind)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS, start=1)}
_STAGE, _MICRO_BATCH, _PEER = 6, 20, 44  # the first bit of each; the kind comes first
_LARGEST_STAGE, _LARGEST_MICRO_BATCH = (1 << 14) - 1, (1 << 24) - 1


def number_of(action: Action) -> int:
    """Return the number of an action, not 0; `action_of` is its inverse up to 16,000 stages."""
    return (
        _NUMBERS[action.kind]
        | min(action.stage, _LARGEST_STAGE) << _STAGE
        | min(action.micro_batch + 1, _LARGEST_MICRO_BATCH) << _MICRO_BATCH
        | min(action.peer + 1, _LARGEST_STAGE) << _PEER
    )


def action_of(number: int) -> Action | None:
    """Return the action with a number; None for 0, and for what is none."""
    kind = number & 63
    if not 0 < kind <= len(_KINDS):
        return None
    return Action(
        _KINDS[kind - 1],
        number >> _STAGE & _LARGEST_STAGE,
        (number >> _MICRO_BATCH & _LARGEST_MICRO_BATCH) - 1,
        (number >> _PEER & _LARGEST_STAGE) - 1,
    )
