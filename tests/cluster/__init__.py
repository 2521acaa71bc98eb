"""Tests on a cluster that stands on one machine: hosts with sshd and a link each, and Slurm over them."""
