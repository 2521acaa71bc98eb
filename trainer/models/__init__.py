"""Models: ordered lists of layers."""
