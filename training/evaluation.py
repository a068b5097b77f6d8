"""What a person sees when a run is over: what its best model gets right and wrong, and the trend of its curves.

pl.Trainer(callbacks=[ModelCheckpoint(monitor="val/acc", mode="max"), BestModel()], ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.utilities.distributed import gather_all_tensors

from cifar10.records import CLASS_NAMES
from cifar10.storage import write_bytes
from experiments.runs import read_curves
from training import diagnosis, figures
from training.callbacks import best_checkpoint, tensorboard

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TREND = "trend.md"  # in the log folder of a finished run
PROJECTED = 1000  # images in the projector
MISTAKES = 30  # shown
# The HParams tab: these first, then the other flags that make a run what it is.
COMPARED = ("optimizer", "lr", "batch_size", "schedule", "augmentation", "width", "seed", "select_on")
NOT_COMPARED = {"crop", "flip", "cutout"} | {
    "data_dir",
    "mirror",
    "log_dir",
    "checkpoint_dir",
    "tag",
    "pictures",
    "quiet",
}
NOT_COMPARED |= {"threads", "accelerator", "devices", "num_nodes", "strategy", "fast_dev_run"}
SCORES = {  # of a run, by the names of its result: scalar and title
    "val_acc": ("whole_run/best_acc", "best validation accuracy"),
    "best_epoch": ("whole_run/best_epoch", "best epoch"),
    "test_acc": ("whole_run/test_acc", "test accuracy"),
    "seconds": ("whole_run/seconds", "seconds"),
}
GUIDE = """
- **Scalars** and **Time Series**: loss, accuracy and images/s over epochs (the axis says Step); `lr`,
  `train/loss_step` and `train/grad_norm` over training steps. What is in `whole_run` has one value a run. Set
  *Smoothing* to 0: a curve of few epochs, smoothed, lags behind its values.
- **Custom Scalars**: training and validation in one chart; the accuracy of each class. *Matches* tells the lines.
- **Images**: `what_it_sees`, a training batch as the network gets it, and an image of each class before and after
  preprocessing; `what_it_learned`, the first layer's filters after each epoch (grey is 0; move the slider) and what
  each layer makes of one image; `where_it_fails`, the best epoch's mistakes on the validation images; `whole_run`,
  the curves. Tick *Show actual image size* to read them.
- **Graphs**: the network; a double click opens a box.
- **HParams**: all runs in one table, with their flags and results; tick on the left what to compare. The best accuracy
  is that on the images named by `select_on`. Parallel coordinates leave out runs without a value in a ticked column.
- **Projector**: 1,000 validation images, placed by what the last layer gets of them. Colour by class, and try T-SNE.
- **Text**: results, settings, and the trend of the run with its advice.
"""


@dataclass(frozen=True)
class Predictions:
    """What a network makes of N labelled images; all on the CPU.

    Attributes:
        images: float32 [N, 3, H, W], as the network gets them.
        labels: int64 [N].
        logits: float32 [N, C].
        features: float32 [N, F], what the last linear layer gets.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor

    def confusion(self) -> Tensor:
        """int64 [C, C], rows true, columns predicted."""
        return multiclass_confusion_matrix(self.logits, self.labels, self.logits.shape[1])


class BestModel(Callback):
    """When training ends, classifies the validation images with the best checkpoint, and shows it in TensorBoard.

    Confusion matrix, reliability diagram, most confident mistakes, feature maps of one image, projector; the curves of
    the run, and their trend, which is in `trend.md` in the log folder too. Without a checkpoint that monitors a metric
    the last weights are taken. Without validation there are only the curves of the training; without TensorBoard's
    logger, nothing.

    Args:
        stage: What the metrics of the validation are called.
        class_names: Of all classes, by label.
        draw: Whether there are pictures, or the trend alone.

    Attributes:
        trend: After the run, in the first process; None without validation.
    """

    def __init__(self, stage: str = "val", class_names: Sequence[str] = CLASS_NAMES, draw: bool = True) -> None:
        self.stage, self.class_names, self.draw = stage, class_names, draw
        self.trend: diagnosis.Trend | None = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            return
        predictions, maps = None, {}
        if loaders := trainer.val_dataloaders:
            loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
            with best_weights(trainer, pl_module):
                predictions = gather(predict(pl_module, loader), pl_module.device)  # all processes take part
                maps = layer_outputs(pl_module, predictions.images[:1])
        if writer := tensorboard(trainer):
            writer.flush()
            curves = read_curves(Path(writer.log_dir))
            if predictions:
                self._analyse(writer, curves, predictions, trainer.current_epoch)
            if self.draw:
                self._draw_curves(writer, curves, trainer.current_epoch)
                if predictions:
                    datamodule = trainer.datamodule  # type: ignore[attr-defined]
                    known = hasattr(datamodule, "validation_pictures")
                    shown = datamodule.validation_pictures() if known else figures.pixels(predictions.images)
                    self._draw_predictions(writer, predictions, shown, maps, trainer.current_epoch)
            writer.flush()

    def _analyse(
        self, writer: SummaryWriter, curves: dict[str, dict[int, float]], predictions: Predictions, epoch: int
    ) -> None:
        names = ("train/loss", "train/acc", f"{self.stage}/loss", f"{self.stage}/acc")
        epochs = sorted(set.intersection(*(set(curves.get(name, ())) for name in names)))
        if epochs:
            train_loss, train_acc, val_loss, val_acc = ([curves[name][epoch] for epoch in epochs] for name in names)
            confusion = predictions.confusion().numpy()
            self.trend = diagnosis.analyse(
                train_loss, train_acc, val_loss, val_acc, self.class_names, confusion, epochs[0]
            )
            text = diagnosis.markdown(self.trend, self.stage)
            write_bytes(Path(writer.log_dir) / TREND, text.encode())
            writer.add_text("trend", text, epoch)

    def _draw_curves(self, writer: SummaryWriter, curves: dict[str, dict[int, float]], epoch: int) -> None:
        train, val = (
            {name: curves[f"{stage}/{name}"] for name in ("loss", "acc") if f"{stage}/{name}" in curves}
            for stage in ("train", self.stage)
        )
        if train or val:
            best = self.trend.best_epoch if self.trend else None
            figure = figures.curves(train, val, best, diagnosis.said_of(self.stage, "validation"))
            writer.add_image("whole_run/curves", figures.rgb(figure), epoch, dataformats="HWC")
        writer.add_text("what_is_where", diagnosis.said_of(self.stage, GUIDE), epoch)

    def _draw_predictions(
        self,
        writer: SummaryWriter,
        predictions: Predictions,
        shown: np.ndarray,
        maps: dict[str, Tensor],
        epoch: int,
    ) -> None:
        probabilities = predictions.logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        wrong = (predicted != predictions.labels).nonzero()[:, 0]
        wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
        first = torch.arange(len(predictions.labels))[:PROJECTED]
        names = [
            (self.class_names[label], self.class_names[answer])
            for label, answer in zip(predictions.labels.tolist(), predicted.tolist(), strict=True)
        ]
        arrow = "\N{RIGHTWARDS ARROW}"
        captions = [f"{names[i][0]} {arrow}\n{names[i][1]} {confidence[i]:.0%}" for i in wrong.tolist()]
        title = diagnosis.said_of(self.stage, f"Most confident validation mistakes: truth {arrow} prediction")
        counts = predictions.confusion()
        drawn = {
            "where_it_fails/confusion_matrix": figures.confusion(counts, self.class_names),
            "where_it_fails/confusion_matrix_shares": figures.confusion(counts, self.class_names, normalised=True),
            "where_it_fails/reliability": figures.reliability(probabilities, predictions.labels),
            "where_it_fails/most_confident_mistakes": figures.sheet(shown[wrong.numpy()], captions, title),
            "what_it_learned/feature_maps": figures.feature_maps(
                figures.pixels(predictions.images[first])[0], maps, probabilities[0], self.class_names, names[0][0]
            ),
        }
        for tag, figure in drawn.items():
            writer.add_image(tag, figures.rgb(figure), epoch, dataformats="HWC")
        writer.add_embedding(
            # Three decimals are plenty to place a point, and the file is a quarter as large.
            predictions.features[first].double().numpy().round(3),
            names[: len(first)],
            torch.from_numpy(shown[: len(first)]).permute(0, 3, 1, 2) / 255,
            epoch,
            "features",
            metadata_header=["class", "prediction"],
        )


def log_result(writer: SummaryWriter, flags: Mapping[str, Any], result: Mapping[str, Any], epoch: int) -> None:
    """Write a finished run's flags and results into TensorBoard: as text, and as its row in the HParams tab.

    Args:
        flags: What `train.train` takes, plain values by name.
        result: What it returns.
        epoch: The x value.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.api_pb2 import (
        DATA_TYPE_FLOAT64,
        DATA_TYPE_STRING,
        Experiment,
        HParamInfo,
        MetricInfo,
        MetricName,
    )
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, create_summary_metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    scores = {name: result[name] for name in SCORES if result[name] is not None}
    titled = {diagnosis.said_of(flags["select_on"], SCORES[name][1]): f"{value:.4g}" for name, value in scores.items()}
    writer.add_text("result", diagnosis.table(("result", ""), titled), epoch)
    writer.add_text("settings", diagnosis.table(("flag", ""), flags), epoch)
    for name, value in scores.items():
        writer.add_scalar(SCORES[name][0], value, epoch)

    given = {name: value for name, value in flags.items() if name not in NOT_COMPARED and value is not None}
    augmentation = [f"{name} {flags[name]}" for name in ("crop", "cutout") if flags[name]] + ["flip"] * flags["flip"]
    given["augmentation"] = ", ".join(augmentation) or "none"
    columns = [
        HParamInfo(
            name=name,
            type=DATA_TYPE_STRING if isinstance(value, str) else DATA_TYPE_FLOAT64,
            differs=name in COMPARED,  # these come first, and are the ones ticked from the start
        )
        for name, value in given.items()
    ]
    # TensorBoard takes the columns from any one run, so each names all scores, also those that it does not have.
    # The title has to hold for runs whose epoch was chosen on the test set too; a longer one covers its neighbours.
    titles = {tag: title.replace("validation accuracy", "accuracy (select_on)") for tag, title in SCORES.values()}
    metrics = [MetricInfo(name=MetricName(tag=tag), display_name=title) for tag, title in titles.items()]
    data = HParamsPluginData(experiment=Experiment(hparam_infos=columns, metric_infos=metrics))
    experiment = Summary.Value(tag=EXPERIMENT_TAG, metadata=create_summary_metadata(data))
    _, start, end = hparams(given, {})
    for part in (Summary(value=[experiment]), start, end):
        writer.file_writer.add_summary(part, epoch)  # type: ignore[attr-defined]
    writer.flush()


@torch.no_grad()
def predict(module: pl.LightningModule, loader: Iterable[Any]) -> Predictions:
    """Classify all batches (images, labels) of `loader` with the module as it is, in evaluation mode."""
    features: list[Tensor] = []
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0].cpu()))
    training = module.training
    try:
        module.eval()
        batches = [(images, labels, module(images.to(module.device)).cpu()) for images, labels in loader]
    finally:
        module.train(training)
        handle.remove()
    images, labels, logits = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Predictions(images, labels, logits, torch.cat(features))


def gather(predictions: Predictions, device: torch.device) -> Predictions:
    """The predictions of all processes together, exchanged through `device`; each process has to call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return predictions
    parts = (getattr(predictions, field.name).to(device) for field in fields(predictions))
    return Predictions(*(torch.cat(gather_all_tensors(part)).cpu() for part in parts))


@torch.no_grad()
def layer_outputs(module: pl.LightningModule, image: Tensor) -> dict[str, Tensor]:
    """What each convolution and linear layer but the last makes of one image.

    Args:
        image: float [1, 3, H, W].

    Returns:
        By the layers' names, in order: float [channels, h, w] or [units], before their activation.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name.removeprefix("model.")] = output[0].cpu()

    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers[:-1]]
    try:
        module(image.to(module.device))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


@contextmanager
def best_weights(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Within it the module has the weights of the best checkpoint, if there is one; afterwards its own again."""
    path = best_checkpoint(trainer)
    if not path:
        yield
        return
    own = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(torch.load(path, map_location=module.device, weights_only=True)["state_dict"])
    try:
        yield
    finally:
        module.load_state_dict(own)
