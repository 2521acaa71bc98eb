"""The proof that the layout does not change the training of the configured model."""
