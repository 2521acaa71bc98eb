"""`python -m trainer.report`: pictures of a run, from the files in its folder; needs no MPI, no torch."""
