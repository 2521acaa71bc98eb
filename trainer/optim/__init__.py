"""Optimizers, gradient clipping, learning rates and loss scaling."""
