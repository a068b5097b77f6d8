"""What is particular to TensorBoard's files: the tabs beyond curves and pictures, and reading the curves back.

Light to import: TensorBoard itself and Lightning are loaded where they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from analysis import figures
from analysis.diagnosis import SPLITS
from core.files import write_bytes
from core.markdown import markdown_table

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from matplotlib.figure import Figure
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

Scalars: TypeAlias = Mapping[str, Mapping[int, float]]  # by tag, value by step
RESULT = "result"  # folder in a run's log folder
RESULT_TITLES = {  # of a finished run, by the names of its result
    "val_acc": "best {images} accuracy",
    "best_epoch": "best epoch",
    "test_acc": "test accuracy",
    "seconds": "seconds",
}


def writer_of(trainer: pl.Trainer) -> SummaryWriter | None:
    """Return the writer of the run's event file; None if there is none, and in processes beyond the first."""
    from pytorch_lightning.loggers import TensorBoardLogger

    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """Read all scalars in a run's event files: by tag, value by step; of a step written twice the later one."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), {SCALARS: 0}).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, epoch: int, file: Path) -> None:
    """Add a figure to the Images tab, and write the same PNG to a file."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    content = figures.png(figure)
    width, height = figure.canvas.get_width_height()
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
    # `add_image` would make another PNG of the pixels. A writer that was closed opens a file again.
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)
    write_bytes(file, content)


def add_projector(
    writer: SummaryWriter, features: Tensor, names: Sequence[tuple[str, str]], pictures: np.ndarray, epoch: int
) -> None:
    """Fill the Projector tab: `pictures`, uint8 [N, H, W, 3], where their `features`, float [N, F], lie; `names` are
    class and prediction."""
    import torch

    writer.add_embedding(
        # Three decimals are plenty to place a point, and the file is a quarter as large.
        features.double().numpy().round(3),
        list(names),
        torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255,
        epoch,
        "features",
        metadata_header=["class", "prediction"],
    )


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a finished run's results in words; `result` is what `train.train` returns."""
    return [
        (title.format(images=SPLITS[result["select_on"]]), f"{result[name]:.{'2%' if 'acc' in name else '4g'}}")
        for name, title in RESULT_TITLES.items()
        if result[name] is not None
    ]


def log_result(
    writer: SummaryWriter,
    description: Mapping[str, str],
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    epoch: int,
) -> None:
    """Write a finished run's results and the description of what was trained as text, and its row in the HParams tab.

    The row is a run of TensorBoard in the folder RESULT: its only scalars are the results, so that they are the tab's
    scores. TensorBoard itself finds the settings that differ among the runs, and shows those first.

    Args:
        settings: What the HParams tab may show; settings that are None are left out.
        result: What `RunResult.plain` returns.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for name, rows in (("result", result_rows(result)), ("what_was_trained", description.items())):
        writer.add_text(name, markdown_table((name, ""), rows), epoch)
    folder = Path(writer.log_dir) / RESULT
    for old in folder.glob("events*"):  # of a run that is resumed to train more epochs
        old.unlink()
    with SummaryWriter(str(folder)) as row:
        for name in RESULT_TITLES:
            if result[name] is not None:
                row.add_scalar(f"result/{name}", result[name], epoch)
        _, *session = hparams({name: value for name, value in settings.items() if value is not None}, {})
        for part in session:
            row.file_writer.add_summary(part, epoch)  # type: ignore[union-attr]
