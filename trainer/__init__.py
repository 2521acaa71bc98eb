"""Trains models that are partitioned into pipeline stages and replicated with Horovod data parallelism."""

__version__ = "0.1.0"
