"""Optimizers and learning-rate schedules by name, for the command line and for training.

PyTorch is imported only when an optimizer is made: the command line reads the lists at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import SettingError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Defaults:
    """A class of `torch.optim`, or `Muon` of models/muon.py, and defaults of two flags."""

    class_name: str
    lr: float
    weight_decay: float = 0.0


# The rates of sgd, adam, adamw and muon were the best of six on validation images (results/optimizers/); those of the
# others on a grid of factors of two, after three epochs: one run each.
OPTIMIZERS = {
    "sgd": Defaults("SGD", lr=0.05, weight_decay=5e-4),
    "adam": Defaults("Adam", lr=0.004),
    "adamw": Defaults("AdamW", lr=0.004, weight_decay=0.01),
    "nadam": Defaults("NAdam", lr=0.004),
    "radam": Defaults("RAdam", lr=0.008),
    "adamax": Defaults("Adamax", lr=0.02),
    "rmsprop": Defaults("RMSprop", lr=0.002),
    "adagrad": Defaults("Adagrad", lr=0.04),
    "adadelta": Defaults("Adadelta", lr=2.0),
    "adafactor": Defaults("Adafactor", lr=0.08),
    "asgd": Defaults("ASGD", lr=0.2),
    "muon": Defaults("Muon", lr=0.008, weight_decay=5e-4),
}

WARMUP_SHARE = 0.25  # of all steps, for `onecycle`
WARMUP_START = 0.05  # of the peak learning rate


def _onecycle(progress: float) -> float:
    if progress < WARMUP_SHARE:
        return WARMUP_START + (1 - WARMUP_START) * progress / WARMUP_SHARE
    return (1 - progress) / (1 - WARMUP_SHARE)


# Each maps progress, steps done / steps in all, in [0, 1], to the factor on the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "onecycle": _onecycle,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "constant": lambda progress: 1.0,
}


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    bfloat16: bool = False,
) -> torch.optim.Optimizer:
    """Make the optimizer `name` of OPTIMIZERS, in PyTorch's fused form where it has one.

    Args:
        momentum: Only SGD uses it, and `nesterov`.
        bfloat16: Whether training steps are in bfloat16; Muon uses it, too, then.
    """
    import inspect

    import torch

    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if name == "muon":  # torch.optim's own takes no filters
        from models.muon import Muon

        return Muon(parameters, dtype=torch.bfloat16 if bfloat16 else torch.float32, **options)
    optimizer_class = getattr(torch.optim, OPTIMIZERS[name].class_name)
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    if "fused" in inspect.signature(optimizer_class).parameters:
        options["fused"] = True
    return optimizer_class(parameters, **options)


def make_schedule(optimizer: torch.optim.Optimizer, name: str, total_steps: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the schedule `name` over `total_steps` optimizer steps; call `scheduler.step()` after each of them.

    Only "constant" takes infinitely many steps; SettingError if another does.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if math.isinf(total_steps) and name != "constant":
        raise SettingError(
            "schedule", name, "needs a last step: give the Trainer max_epochs or max_steps, or use constant"
        )
    factor = SCHEDULES[name]
    return LambdaLR(optimizer, lambda step: factor(min(step / total_steps, 1.0)))
