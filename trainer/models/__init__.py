"""Models as ordered lists of layers."""
