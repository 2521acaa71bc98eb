"""The built-in schedules, one a module: each defines `RECIPE`, and `trainer.schedule.resolve` finds it.

All of them run backwards, and weight gradients, in micro-batch order: so gradients add up in the same order
in every layout. Drawings show forwards as `0`, backwards as `(0)`, weight gradients of split backwards as
`{0}`; a backward takes as long as two forwards, and each part of a split one as long as one.
"""
