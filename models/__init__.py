"""Models by name; `exp.exp_basic.MODELS` is the registry."""
