"""Speculative decoding of autoregressive patch models. In a checkout the folder is `utils`; installed, `patchspec`.

    from patchspec import FromForward, Tolerance, decode_alone, decode_speculative

`adapters` makes your own model decodable (see `docs/YOUR_MODEL.md`); `interface` defines what the decoder requires of a
model; `speculative_decoder` is the decoder. Depends on torch only.
"""
from .acceptance import RULES, Certified, MeanRule, Parareal, Simplified, Tolerance
from .adapters import FromCache, FromForward
from .calibration import Calibration, fit_law, next_patch_residuals
from .decoded import ACCEPTED, BONUS, REJECTED, Decoded, Round
from .errors import NotFinite
from .fidelity import Controller, audit_allows, blocks_allow, deviations, draw_audit, fit_constants, longest_safe
from .interface import Decodable, Model, Prediction, Rule, State
from .lossless import Coupling, Exact
from .planner import Plan, make_plan
from .proposals import Judgement, Noise, Proposals
from .scores import PararealMetrics, PathMetrics, PointMetrics, SpeculationMetrics
from .speculative_decoder import decode_alone, decode_parareal, decode_speculative, sample_alone
from .target_law import TargetLaw
from .window_state import WindowState

__version__ = "0.7.0"
__all__ = [
    "ACCEPTED", "BONUS", "REJECTED", "RULES", "Calibration", "Certified", "Controller", "Coupling", "Decodable",
    "Decoded", "Exact", "FromCache", "FromForward", "Judgement", "MeanRule", "Model", "Noise", "NotFinite", "Parareal",
    "PararealMetrics", "PathMetrics", "Plan", "PointMetrics", "Prediction", "Proposals", "Round", "Rule", "Simplified",
    "SpeculationMetrics", "State", "TargetLaw", "Tolerance", "WindowState", "audit_allows", "blocks_allow",
    "decode_alone", "decode_parareal", "decode_speculative", "deviations", "draw_audit", "fit_constants", "fit_law",
    "longest_safe", "make_plan", "next_patch_residuals", "sample_alone",
]
