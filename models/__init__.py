"""Models: each implements the decoding interface of `utils.interface`; `models.registry` knows them by name."""
from models.registry import MODELS, load

__all__ = ["MODELS", "load"]
