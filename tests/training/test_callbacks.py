"""What a person sees: tags, pictures and texts in TensorBoard, lines on the terminal, the range test."""

import csv
import io
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

import train as main_program
from analysis import figures
from analysis.diagnosis import Trend
from cifar10 import records
from cifar10.records import CLASS_NAMES
from cifar_datamodule import CIFAR10DataModule, stratified_split
from conftest import curves, history, resume, weights
from lenet_module import LeNetModule
from models.classifier import measure_accuracy
from training import best_model, callbacks
from training import run as run_again

BEST_MODEL_FILES = {  # pictures of the best model, and their tags
    "feature_maps.png": "what_it_learned/feature_maps",
    "confusion.png": "where_it_fails/confusion",
    "mistakes.png": "where_it_fails/mistakes",
    "confused.png": "where_it_fails/confused",
    "reliability.png": "where_it_fails/reliability",
    "overview.png": "whole_run/overview",
    "class_accuracy.png": "whole_run/class_accuracy",
}
TRAINING_FILES = {
    "training_batch.png": "what_it_sees/training_batch",
    "preprocessing.png": "what_it_sees/preprocessing",
    "curves.png": "whole_run/curves",
}
BEST_MODEL_PICTURES = set(BEST_MODEL_FILES.values())
TRAINING_PICTURES = {*TRAINING_FILES.values(), "what_it_learned/filters_conv1"}
RUN_FILES = {
    *("config.yaml", "summary.json", "trend.md", "report.md", "report.html"),
    *("history.csv", "confusion.csv", "classes.csv"),
}


def steps(log_dir: Path | str, kind: str, tag: str) -> list[int]:
    events = EventAccumulator(str(log_dir), {kind: 0}).Reload()
    return [event.step for event in getattr(events, kind.capitalize())(tag)]


def tags(log_dir: Path | str) -> dict[str, Any]:
    return EventAccumulator(str(log_dir)).Reload().Tags()


def test_everything_is_there_after_a_run(finished: SimpleNamespace) -> None:
    log_dir = finished.log_dir
    found = tags(log_dir)
    assert set(found["images"]) == BEST_MODEL_PICTURES | TRAINING_PICTURES
    assert steps(log_dir, "images", "what_it_learned/filters_conv1") == [0, 1, 2, 3, 4]
    assert steps(log_dir, "images", "where_it_fails/confusion") == [4]
    assert found["graph"]
    texts = {tag.removesuffix("/text_summary") for tag in found["tensors"]}
    groups = sorted({tag.partition("/")[0] for tag in texts if "__" not in tag})
    assert groups[:3] == ["result", "trend", "what_is_where"]  # which TensorBoard opens
    assert {tag.partition("/")[0] for tag in found["scalars"]} == {"train", "val", "val_acc_by_class"}
    assert set(found["scalars"]) >= {"train/clean_acc", "train/grad_norm", "train/images_per_second"}
    projected = log_dir / "00004" / "features"
    assert len((projected / "tensors.tsv").read_text().splitlines()) == 100
    assert (projected / "metadata.tsv").read_text().splitlines()[0] == "class\tprediction"
    first = np.asarray(Image.open(projected / "sprite.png"))[:32, :32]
    images, labels = records.load(finished.data_dir / records.FOLDER, train=True)
    raw = images[int(stratified_split(torch.from_numpy(labels), 100, split_seed=0)[1][0])]
    assert np.abs(first.astype(int) - raw).max() <= 1  # as it is, though the network gets it filtered and whitened
    assert sum(path.stat().st_size for path in log_dir.glob("events*")) < 5e6


def test_epoch_curves_are_over_epochs_and_step_curves_over_steps(finished: SimpleNamespace) -> None:
    logged = curves(finished.log_dir)
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert [epoch for epoch, _ in logged[name]] == [1, 2, 3, 4]
    for name in ("train/lr", "train/loss_step"):
        assert [step for step, _ in logged[name]] == [17, 35, 53, 71]  # an epoch has 18 steps
    for epoch in range(4):
        by_class = [logged[f"val_acc_by_class/{name}"][epoch] for name in CLASS_NAMES]
        assert {step for step, _ in by_class} == {epoch + 1}
        assert np.mean([value for _, value in by_class]) == pytest.approx(logged["val/acc"][epoch][1], abs=1e-6)


def test_without_pictures_the_scalars_and_the_trend_are_there_and_quiet_prints_nothing(run: Any, capsys: Any) -> None:
    result = run(pictures=False, quiet=True)
    assert capsys.readouterr().out == ""
    found = tags(result.log_dir)
    assert found["images"] == [] and not found["graph"] and not (result.log_dir / "00002").exists()
    assert "train/grad_norm" in found["scalars"] and "trend/text_summary" in found["tensors"]
    log_dir = result.log_dir
    assert {path.name for path in log_dir.iterdir() if "events" not in path.name} == RUN_FILES | {"result"}
    assert "](c" in (log_dir / "report.md").read_text() and "![" not in (log_dir / "report.md").read_text()


def test_tables_and_a_report_are_beside_the_pictures_that_tensorboard_has(finished: SimpleNamespace) -> None:
    result, log_dir, pictures = finished.result, finished.log_dir, BEST_MODEL_FILES | TRAINING_FILES
    assert {path.name for path in log_dir.iterdir() if path.is_file() and "events" not in path.name} == (
        RUN_FILES | pictures.keys() | {"predictions.csv", "filters.png", "projector_config.pbtxt"}
    )
    events = EventAccumulator(str(log_dir)).Reload()
    page = (log_dir / "report.md").read_text(encoding="utf-8")
    for name, tag in pictures.items():
        shown = Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(log_dir / name)))
        assert shown.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert f"]({name})" in page or name == "curves.png"  # which are in the overview
    for name in re.findall(r"\]\((.*?)\)", page):
        assert (log_dir / name).is_file()
    counts = np.loadtxt(log_dir / "confusion.csv", int, delimiter=",", skiprows=1, usecols=range(1, 11))
    assert counts.trace() / 100 == pytest.approx(result.val_acc)
    assert f"{result.test_acc:.2%}" in page
    assert "--optimizer=adam" in page and "On the 100 validation images" in page and "## Trend" in page
    with (log_dir / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    right = [row["true class"] == row["predicted class"] for row in predictions]
    assert np.mean(right) == pytest.approx(result.val_acc)
    assert sum(float(predictions[0][name]) for name in CLASS_NAMES) == pytest.approx(1, abs=1e-4)
    _, labels = records.load(log_dir.parents[2] / "data" / records.FOLDER, train=True)
    assert all(CLASS_NAMES[labels[int(row["image"])]] == row["true class"] for row in predictions)
    assert f"report         {log_dir / 'report.html'}" in main_program.format_summary(result)


def test_the_trend_is_beside_the_logs_and_in_the_summary(finished: SimpleNamespace) -> None:
    result = finished.result
    trend = Trend(**json.loads((finished.log_dir / "summary.json").read_text())["trend"])
    assert trend.best_epoch == result.best_epoch and trend.epochs == 4
    assert trend.best_acc == pytest.approx(result.val_acc)
    assert len(trend.hardest) == 3
    for words in ((finished.log_dir / "trend.md").read_text(), main_program.format_summary(result)):
        assert f"{trend.best_epoch} of 4: highest validation accuracy" in words and trend.advice in words


def test_a_run_made_longer_has_the_curves_and_the_trend_of_the_whole_one(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("draw_inputs", "draw_curves", "draw_predictions"):  # takes seconds, and is looked at elsewhere
        monkeypatch.setattr(best_model.Pictures, name, lambda *arguments: None)
    flags = {"schedule": "constant", "lr": 0.01, "pictures": True}
    whole = run(epochs=2, **flags)
    resumed = resume(run(epochs=1, **flags).checkpoint.parent, epochs=2)
    assert (resumed.trend, resumed.test_acc) == (whole.trend, whole.test_acc)
    expected, found = curves(whole.log_dir), curves(resumed.log_dir)
    for name in ("train/loss", "val/acc", "val_acc_by_class/cat", "train/grad_norm"):
        assert sorted(set(found[name])) == expected[name]
    for folder, stage in (("training", "train"), ("validation", "val")):  # two runs of TensorBoard
        part = curves(resumed.log_dir / folder)
        assert part.keys() == {"curves/accuracy", "curves/loss"}
        assert part["curves/accuracy"] == expected[f"{stage}/acc"]
        assert part["curves/loss"] == expected[f"{stage}/loss"]
    (layout,) = EventAccumulator(str(whole.log_dir)).Reload().Tensors("custom_scalars__config__")
    charts = [chart for part in Layout.FromString(layout.tensor_proto.string_val[0]).category for chart in part.chart]
    logged = [*expected, *part]
    assert all(any(re.match(each, tag) for tag in logged) for chart in charts for each in chart.multiline.tag)


class Killed(Exception):
    """Instead of a signal, at a moment that the test chooses."""


def test_a_run_killed_after_its_last_checkpoint_ends_as_one_that_was_not(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(epochs=1)

    def killed(*hook_arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(run_again, "load_best", killed)
        run(pictures=True, epochs=1)
    folder = whole.checkpoint.parent.parent / "version_1"
    resumed = resume(folder)
    measured = {"seconds", "images_per_second", "log_dir", "checkpoint"}
    results = [
        {name: value for name, value in asdict(each).items() if name not in measured} for each in (whole, resumed)
    ]
    assert results[0] == results[1]
    assert resumed.images_per_second > 0
    assert resumed.checkpoint.name == whole.checkpoint.name
    pictures = BEST_MODEL_PICTURES | TRAINING_PICTURES - {"what_it_sees/preprocessing"}
    assert set(tags(resumed.log_dir)["images"]) == pictures
    assert set(tags(resumed.log_dir)["scalars"]) == set(tags(whole.log_dir)["scalars"])
    assert steps(resumed.log_dir, "images", "whole_run/curves") == [1]
    assert history(resumed.log_dir) == history(whole.log_dir)


def texts_of(log_dir: Path) -> dict[str, str]:
    """The texts that TensorBoard shows for a run, and the layout of its charts."""
    events = EventAccumulator(str(log_dir)).Reload()
    found = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0] for tag in events.Tags()["tensors"]}
    return {tag.removesuffix("/text_summary"): text.decode(errors="replace") for tag, text in found.items()}


def test_clean_training_accuracy_is_that_of_the_best_checkpoint_on_whole_images(run: Any, data_dir: Path) -> None:
    result = run(crop=4, cutout=8, random_corruption=0.5)
    (point,) = curves(result.log_dir)["train/clean_acc"]
    module = LeNetModule(network="lenet5", width=1)
    module.load_state_dict(weights(result.checkpoint))
    datamodule = CIFAR10DataModule(data_dir=data_dir, val_size=100)
    datamodule.setup()
    found = best_model.predict(module, datamodule.clean_train_dataloader())
    accuracy = pytest.approx(measure_accuracy(found.logits, found.labels))
    assert len(found.labels) == 900 and point == (result.best_epoch, accuracy) and result.trend.train_acc == accuracy


def hparams_tab(log_dir: Path) -> tuple[set[str], set[str], list[str], dict[str, dict[str, float]]]:
    """What TensorBoard's HParams tab has: settings, those that it shows first, scores, and the scores of each run."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(log_dir)).Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(log_dir))))
    asked = RequestContext(), context, ""
    experiment = get_experiment.Handler(*asked, api_pb2.GetExperimentRequest()).run()
    everything = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100)
    everything.allowed_statuses.append(api_pb2.STATUS_SUCCESS)
    groups = list_session_groups.Handler(*asked, everything).run().session_groups
    scores = {group.name: {each.name.tag: each.value for each in group.metric_values} for group in groups}
    columns = {info.name: info.differs for info in experiment.hparam_infos}
    different = {name for name, differs in columns.items() if differs}
    return set(columns), different, [info.name.tag for info in experiment.metric_infos], scores


def test_the_hparams_tab_has_a_row_for_each_run_also_a_resumed_one_and_one_without_validation(
    run: Any, tmp_path: Path
) -> None:
    flags = {"schedule": "constant", "lr": 0.01, "epochs": 1}
    results = [run(**flags, optimizer="adam"), run(**flags, val_size=0, select_on="test")]
    results.append(resume(run(**flags | {"val_size": 0}).checkpoint.parent, epochs=2))
    columns, different, scores, rows = hparams_tab(tmp_path / "logs")
    assert different == {"optimizer", "weight_decay", "val_size", "select_on", "epochs"}
    assert {"crop", "flip", "cutout"} < columns and "data_dir" not in columns
    assert scores == ["result/best_epoch", "result/seconds", "result/test_acc", "result/val_acc"]
    assert len(rows) == 3
    for result in results:
        row = rows[str(result.log_dir.relative_to(tmp_path / "logs") / "result")]
        assert row["result/test_acc"] == pytest.approx(result.test_acc)
        assert row.get("result/val_acc") == (result.val_acc and pytest.approx(result.val_acc))
    assert len(list(results[2].log_dir.glob("events*"))) > 1


def test_without_validation_the_last_epoch_is_tested_and_there_are_the_pictures_of_the_training(run: Any) -> None:
    result = run(val_size=0, pictures=True, denoise="median")
    assert result.best_epoch is None and result.val_acc is None and result.checkpoint.name == "last.ckpt"
    assert set(tags(result.log_dir)["images"]) == TRAINING_PICTURES and "val/acc" not in curves(result.log_dir)
    assert result.trend is None and not (result.log_dir / "trend.md").exists()
    assert "wall time" in main_program.format_summary(result)


def test_what_is_chosen_on_the_test_set_says_so_everywhere(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    png = figures.png

    def draw(figure: Any) -> bytes:
        drawn.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", draw)
    result = run(val_size=0, select_on="test", pictures=True, label_smoothing=0.1)
    logged = curves(result.log_dir)
    for name in ("test/acc", "test_acc_by_class/cat"):
        assert [epoch for epoch, _ in logged[name]] == [1, 2]
    assert result.test_acc == pytest.approx(max(value for _, value in logged["test/acc"]))
    assert result.trend.best_acc == pytest.approx(result.test_acc) and "test_acc" in result.checkpoint.name
    assert "(mean over the epoch, augmented, smoothed labels)" in texts_of(result.log_dir)["what_is_where"]
    in_figures = [text.get_text() for figure in drawn for text in figure.findobj(Text)]
    in_texts = [text for tag, text in texts_of(result.log_dir).items() if tag != "what_was_trained"]
    words = "".join([*in_figures, *in_texts, (result.log_dir / "trend.md").read_text()])
    for said in ("200 test images", "best test accuracy", "Training and test,", "highest test accuracy"):
        assert said in words
    assert f"{best_model.PROJECTED} test images" in words and "Test accuracy of each class" in words
    assert "alidation" not in words + main_program.format_summary(result)


def test_after_an_epoch_one_line_stays_with_a_mark_if_it_is_the_best(finished: SimpleNamespace) -> None:
    start, *others = finished.printed.splitlines()
    lines = [line for line in others if line.startswith("epoch ")]  # a busy machine gets one line more
    assert start.startswith("Training LeNet-5, width 1, 62,006 parameters: 4 epochs, batch 50, adam, lr 0.0003, ")
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(word in lines[0] for word in ("train loss", "val loss", "acc", "lr", " s ", "images/s"))
    accuracies = [value for _, value in curves(finished.log_dir)["val/acc"]]
    best = [accuracy > max(accuracies[:epoch], default=-1) for epoch, accuracy in enumerate(accuracies)]
    assert [line.endswith("best so far") for line in lines] == best


def test_on_a_terminal_a_bar_shows_the_loss_and_the_time_left(
    run: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    run(batch_size=10)  # so many steps that the bar is drawn a few times
    written = capsys.readouterr()
    for word in ("epoch 1/2", "epoch 2/2", "/180", "loss ", " left"):
        assert word in written.err
    assert [line.split()[1] for line in written.out.splitlines()[3:]] == ["1/2", "2/2"]


def test_a_resumed_run_adds_up_images_and_seconds_over_its_legs(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training steps alone move the clock, by a second each; an epoch has 18."""
    now, step_of = 1000, LeNetModule.training_step

    def training_step(module: LeNetModule, batch: Any, batch_idx: int) -> Any:
        nonlocal now
        now += 1
        if now == 1000 + 18 + 7:
            raise Killed
        return step_of(module, batch, batch_idx)

    names = ("perf_counter", "time")
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(**dict.fromkeys(names, lambda: now)))
    monkeypatch.setattr(LeNetModule, "training_step", training_step)
    with pytest.raises(Killed):
        run()
    now += 3600  # between the legs nothing counts
    result = resume(next((tmp_path / "checkpoints").glob("*/version_0")))
    assert (result.seconds, result.images_per_second) == (36, 50)


def test_predictions_keep_the_order_and_the_features_lead_to_the_logits() -> None:
    module = LeNetModule(width=1).train()
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4)), (torch.randn(2, 3, 32, 32), torch.arange(2))]
    found = best_model.predict(module, batches)
    assert module.training and found.labels.tolist() == [0, 1, 2, 3, 0, 1]
    torch.testing.assert_close(module.model.fc3(found.features), found.logits)
    images = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(module.eval()(images), found.logits, rtol=1e-4, atol=1e-5)
    shapes = {name: tuple(value.shape) for name, value in best_model.layer_outputs(module, images[:1]).items()}
    assert shapes == {"conv1": (6, 28, 28), "conv2": (16, 10, 10), "fc1": (120,), "fc2": (84,)}
