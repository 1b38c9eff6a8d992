"""Decoding, acceptance, training and reporting tools; nothing here imports from `exp`."""
