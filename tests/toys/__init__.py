"""A model, a data set and an optimizer, added as a contributor would: declared, then built."""
