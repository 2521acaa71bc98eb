"""Trains models cut into pipeline stages and replicated over Horovod data-parallel ranks."""

__version__ = "0.1.0"
