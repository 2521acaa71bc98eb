"""`python -m trainer.report`: charts of a run, from the files in its folder; needs neither MPI nor torch."""
