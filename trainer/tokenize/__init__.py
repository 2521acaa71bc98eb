"""`python -m trainer.tokenize`: trains a tokenizer's vocabulary, and tokenises text ahead of a run."""
