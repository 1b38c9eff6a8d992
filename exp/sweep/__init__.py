"""Grids of decoding parameters over one pair of models."""
