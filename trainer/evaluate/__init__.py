"""`python -m trainer.evaluate`: the loss and the metrics of a trained model, in any layout."""
