"""`k` auto: methods choose K for batches of given sizes, by measurement on validation windows."""
from __future__ import annotations

import logging
from collections.abc import Mapping

from data_provider.data_factory import evenly_spaced
from exp.evaluate.methods import Method, SpeculativeMethod
from exp.exp_basic import Exp_Basic
from utils.planner import Plan

log = logging.getLogger(__name__)


def plan_once(experiment: Exp_Basic, methods: Mapping[str, Method], batch_sizes: list[int]) -> None:
    """Every method decides for each batch size; of several processes one for all, as no two would measure alike."""
    plans = experiment.team.once(lambda: measured(experiment, methods, batch_sizes))
    for name, method in methods.items():
        if isinstance(method, SpeculativeMethod):
            method.plans = plans[name]


def measured(experiment: Exp_Basic, methods: Mapping[str, Method],
             batch_sizes: list[int]) -> dict[str, dict[int, Plan]]:
    """The plans of the speculative methods, on windows that are spread over the validation split."""
    dataset, _ = experiment.validation_part()
    for size in batch_sizes:
        windows = evenly_spaced(size, len(dataset)).tolist()
        context = dataset.__getitems__(windows)[0].to(experiment.device)
        for name, method in methods.items():
            plan = method.plan(context)
            if plan is not None:
                log.info("%s: %s", name, plan.describe())
    return {name: method.plans for name, method in methods.items() if isinstance(method, SpeculativeMethod)}
