"""Datasets: numbered samples, and the order in which training reads them."""
