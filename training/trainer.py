"""Lightning's Trainer as this project's runs have it: its hardware, its processes and its logger."""

import logging
import os
import socket
import threading
import warnings
from contextlib import suppress
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from core.errors import SettingError, UsageError
from training.checkpoints import AtomicCheckpointIO
from training.config import Hardware

STARTER = "CIFAR10_RUN_STARTER"  # in the environment, the number of the process that started the others of its run


class RunLogger(TensorBoardLogger):
    """Lightning's, without its hparams.yaml: a run has written its config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


class OneProcess(LightningEnvironment):
    """The environment of a run of one process, whose rank is 0, whatever a batch system or a launcher says."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning read one from the environment when it was imported

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def make_trainer(hardware: Hardware, **options: Any) -> pl.Trainer:
    """Make Lightning's Trainer with what all runs of this project share.

    It writes nothing into the working directory and reads nothing from there, as Lightning does on SLURM.

    Raises:
        UsageError: Lightning refuses an option, or the processes of the run cannot meet.
    """
    # What Lightning would say here is either in our own lines or does not hold for data in memory.
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a resumed run's
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # our metrics are of all processes already
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 on newer PyTorch
    warnings.filterwarnings("ignore", ".*srun.* is available on your system but is not used.*")
    processes = hardware.num_nodes * count_devices(hardware)
    strategy = "auto" if processes == 1 and hardware.strategy.startswith("ddp") else hardware.strategy
    try:
        trainer = pl.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=strategy,
            precision=hardware.precision,  # type: ignore[arg-type]
            plugins=[AtomicCheckpointIO(), *choose_environment(processes, hardware.num_nodes)],
            deterministic=True,
            use_distributed_sampler=False,  # the data module shares out the images itself
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            default_root_dir=os.devnull,
            **options,
        )
        if processes > 1:
            check_processes(trainer)
        return trainer
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"{error.args[0]} is not set: start the processes with srun, or another launcher") from error
    except (MisconfigurationException, ValueError, ModuleNotFoundError, RuntimeError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def choose_environment(processes: int, num_nodes: int) -> list[ClusterEnvironment]:
    """Return what says which process of a run this is, or nothing to leave the choice to Lightning."""
    if processes == 1:
        return [OneProcess()]
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    if os.environ["SLURM_NTASKS"] == "1" and num_nodes == 1:  # this task starts the other processes itself
        return [LightningEnvironment()]
    return [SLURMEnvironment(auto_requeue=False)]  # else a signal writes a checkpoint, which any later run would load


def check_processes(trainer: pl.Trainer) -> None:
    """Raise UsageError if the processes of a run are not as many as were started, or have no place to meet."""
    environment: ClusterEnvironment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    started, needed = environment.world_size(), trainer.num_devices * trainer.num_nodes
    if started != needed:
        raise UsageError(
            f"{started} processes were started, but --devices {trainer.num_devices} and --num_nodes "
            f"{trainer.num_nodes} take {needed}"
        )
    rank = os.environ.get("NODE_RANK", "")
    by_hand = trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment)  # no launcher was found
    placed = {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if by_hand and not (placed and rank.isdecimal() and int(rank) < trainer.num_nodes):
        needs = f"needs MASTER_ADDR, MASTER_PORT and NODE_RANK, 0 to {trainer.num_nodes - 1}"
        raise SettingError("num_nodes", trainer.num_nodes, f"{needs}, in the environment of each machine")
    try:
        socket.getaddrinfo(environment.main_address, environment.main_port)
    except (OSError, ValueError) as error:  # ValueError: the port is no number, or the name has forbidden letters
        raise UsageError(f"MASTER_ADDR and MASTER_PORT name no place to meet: {error}") from error


def on_cpu(hardware: Hardware) -> bool:
    """Return whether a run trains on the CPU: always on a machine without another device."""
    return hardware.accelerator == "cpu" or not torch.accelerator.is_available()


def count_devices(hardware: Hardware) -> int:
    """Return on how many devices of each machine a run trains, in a process each."""
    devices = hardware.devices
    if devices in ("auto", -1):
        return 1 if on_cpu(hardware) else torch.accelerator.device_count()
    return devices if isinstance(devices, int) else len(list(filter(None, devices.split(","))))


def refuse_hardware(config: Hardware) -> None:
    """Raise SettingError for what this machine or this project does not have."""
    there = [name for name, each in AcceleratorRegistry.items() if each["accelerator"].is_available()]
    there = ["auto", *sorted(there), *["gpu"] * (there != ["cpu"])]
    if config.accelerator not in there:
        raise SettingError("accelerator", config.accelerator, f"must be one of {', '.join(there)} on this machine")
    if on_cpu(config):
        config.check_cpu()


def end_with_starter() -> None:
    """Let this process end when the one does that started it for their run, however that ends."""
    starter = int(os.environ.setdefault(STARTER, str(os.getpid())))

    def wait() -> None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(starter).wait()
        os._exit(1)

    if starter != os.getpid():
        threading.Thread(target=wait, daemon=True).start()


def end_started(trainer: pl.Trainer) -> None:
    """End the processes that this one has started for its run."""
    started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    processes = started.copy()
    started.clear()  # or Lightning, which watches them, would kill this process too
    for process in processes:
        process.kill()
        process.wait()
