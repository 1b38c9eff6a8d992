"""Experiments: what run.py can be asked to do."""
