"""Optimizers: gradients, learning rates, loss scaling."""
