"""Starts ranks wherever the user is: in Slurm, PBS or LSF, on given hosts, or on this machine."""
