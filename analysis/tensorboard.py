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
RESULT_SCALARS = {  # of a finished run, by the names of its result: tag and title
    "val_acc": ("whole_run/best_acc", "best {images} accuracy"),
    "best_epoch": ("whole_run/best_epoch", "best epoch"),
    "test_acc": ("whole_run/test_acc", "test accuracy"),
    "seconds": ("whole_run/seconds", "seconds"),
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
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    # `add_image` would make another PNG of the pixels. A writer that was closed opens a file again.
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)
    write_bytes(file, content)


def add_projector(
    writer: SummaryWriter, features: Tensor, names: Sequence[tuple[str, str]], pictures: np.ndarray, epoch: int
) -> None:
    """The Projector tab: `pictures`, uint8 [N, H, W, 3], where their `features`, float [N, F], lie; `names` are class
    and prediction."""
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
        for name, (_, title) in RESULT_SCALARS.items()
        if result[name] is not None
    ]


def log_result(
    writer: SummaryWriter,
    description: Mapping[str, str],
    columns: Mapping[str, Any],
    result: Mapping[str, Any],
    epoch: int,
    first: Sequence[str] = (),
) -> None:
    """Write a finished run's results and the description of what was trained as text, its results as scalars, and its
    row in the HParams tab.

    Args:
        columns: The settings in the HParams tab; those that are None are left out.
        result: What `RunResult.plain` returns.
        first: The columns that are shown first.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    # The Text tab opens the first three groups: result, trend and what_is_where.
    for tag, rows in (("result", result_rows(result)), ("whole_run/settings", description.items())):
        writer.add_text(tag, markdown_table((Path(tag).name, ""), rows), epoch)
    for name, (tag, _) in RESULT_SCALARS.items():
        if result[name] is not None:
            writer.add_scalar(tag, result[name], epoch)

    given = {name: columns[name] for name in (*first, *columns) if columns.get(name) is not None}
    # TensorBoard takes the columns from any one run, so each names all scalars, also those that it does not have.
    experiment, start, end = hparams(given, {tag: None for tag, _ in RESULT_SCALARS.values()})
    plugin = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for column in data.experiment.hparam_infos:
        column.differs = column.name in first
    for metric, (_, title) in zip(data.experiment.metric_infos, RESULT_SCALARS.values(), strict=True):
        # It has to hold for runs whose epoch was chosen on the test set too; a longer one covers its neighbours.
        metric.display_name = "best accuracy (select_on)" if "{" in title else title
    plugin.content = data.SerializeToString()
    for part in (experiment, start, end):
        writer.file_writer.add_summary(part, epoch)  # type: ignore[attr-defined]
    writer.flush()
