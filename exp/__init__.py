"""Experiments: the tasks of run.py."""
