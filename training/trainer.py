"""Lightning's Trainer and logger as this project's runs have them, and the hardware that they are refused on."""

import logging
import os
import warnings
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import environments
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from core.errors import SettingError, UsageError
from training.checkpoints import AtomicCheckpointIO
from training.config import Hardware


class RunLogger(TensorBoardLogger):
    """Lightning's, without its hparams.yaml: a run has written its config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


def make_trainer(**options: Any) -> pl.Trainer:
    """Lightning's Trainer with what all runs of this project share; UsageError if it refuses an option."""
    # What Lightning would say here is either in our own lines or does not hold for data in memory.
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a resumed run's
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # our metrics are of all processes already
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 on newer PyTorch
    try:
        return pl.Trainer(
            deterministic=True,
            use_distributed_sampler=False,  # the data module shares out the images itself
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            plugins=[AtomicCheckpointIO()],
            **options,
        )
    except (MisconfigurationException, ValueError, ModuleNotFoundError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def refuse_hardware(config: Hardware) -> None:
    """SettingError for what this machine or this project does not have, as far as can be asked before Lightning is."""
    accelerators = sorted(name for name, each in AcceleratorRegistry.items() if each["accelerator"].is_available())
    gpus = [name for name in accelerators if name != "cpu"]
    # Strategies that train in copies of this process bring nothing back to it.
    copied = ("spawn", "fork", "notebook")
    strategies = [name for name in StrategyRegistry.available_strategies() if not name.endswith(copied)]
    there = {"accelerator": ["auto", *accelerators, *(["gpu"] if gpus else [])], "strategy": ["auto", *strategies]}
    for name, values in there.items():
        if getattr(config, name) not in values:
            raise SettingError(name, getattr(config, name), f"must be one of {', '.join(values)} on this machine")
    on_cpu = config.accelerator == "cpu" or not gpus
    whole = isinstance(config.devices, int) and config.devices > 0
    if on_cpu and not (whole or config.devices == "auto"):
        raise SettingError("devices", config.devices, "must be a number of processes, 1 or above, or auto on the CPU")
    if on_cpu and str(config.precision).startswith("16"):
        raise SettingError("precision", config.precision, "float16 needs a GPU; the CPU has bf16-mixed")
    launchers: Any = (environments.LSFEnvironment, environments.MPIEnvironment)
    launchers += (environments.SLURMEnvironment, environments.TorchElasticEnvironment)
    if config.num_nodes > 1 and not any(each.detect() for each in launchers):
        address, port, rank = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"))
        if not (address and port.isdecimal() and rank.isdecimal() and int(rank) < config.num_nodes):
            needed = f"MASTER_ADDR, MASTER_PORT and NODE_RANK, 0 to {config.num_nodes - 1}"
            raise SettingError("num_nodes", config.num_nodes, f"needs {needed}, in the environment of each machine")
