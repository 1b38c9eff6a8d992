"""OpenLTM's learning-rate schedules as one function of the epoch, so that a resumed run needs no scheduler state."""
import math

COSINE_FLOOR = 1e-8
TYPE2_STEPS = {2: 5e-5, 4: 1e-5, 6: 5e-6, 8: 1e-6, 10: 5e-7, 15: 1e-7, 20: 5e-8}
LRADJ = ("type1", "type2", "type3", "constant")


def learning_rate(epoch: int, base: float, lradj: str = "type1", cosine: bool = False, tmax: int = 10) -> float:
    """Learning rate of epoch 0, 1, 2, ... (OpenLTM adjusts after an epoch, counting from one)."""
    if cosine:
        return COSINE_FLOOR + (base - COSINE_FLOOR) * (1 + math.cos(math.pi * epoch / tmax)) / 2
    if lradj == "type1":
        return base * 0.5 ** max(0, epoch - 1)
    if lradj == "type2":
        passed = [at for at in TYPE2_STEPS if at <= epoch]
        return TYPE2_STEPS[max(passed)] if passed else base
    if lradj == "type3":
        return base if epoch < 3 else base * 0.9 ** (epoch - 3)
    if lradj == "constant":
        return base
    raise ValueError(f"unknown schedule {lradj!r}: one of {LRADJ}")
