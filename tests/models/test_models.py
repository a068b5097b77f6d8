"""Networks by name and from files of one's own; checkpoints, and what is refused of them."""

import hashlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from cifar10.config import Data, Preprocessing
from cifar10.filters import ZCA_SIDE
from conftest import ROOT
from core.errors import UsageError
from core.settings import FORMAT
from made_up import (
    FLAGS,
    OWN_NETWORKS,
    PREPROCESSED,
    STATE,
    change_entries,
    own_network,
    sure_network,
    write_checkpoint,
)
from models import networks
from models.checkpoint import load_checkpoint
from models.classifier import load_classifier
from models.config import Network
from models.networks import BatchNormLeNet5, HorizontalFlipAverage, LeNet5, ResNet
from models.onnx import export
from models.registry import NETWORKS, NetworkClass, hash_network, make_network
from training.config import RunConfig

IMAGES = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ZCA = PREPROCESSED | {"normalize": "zca"}
FILTER = torch.zeros(3, 3 * ZCA_SIDE**2 + 1)  # of the right shape


# Networks


def test_a_network_is_made_by_its_name() -> None:
    assert isinstance(make_network("resnet"), ResNet)
    small = make_network("lenet5", width=1)
    assert isinstance(small, LeNet5) and sum(p.numel() for p in small.parameters()) == 62_006


def test_lenet5_has_its_five_layers_alone() -> None:
    layers = {name: type(layer) for name, layer in LeNet5().named_children()}
    convolution, linear = torch.nn.Conv2d, torch.nn.Linear
    assert layers == {"conv1": convolution, "conv2": convolution, "fc1": linear, "fc2": linear, "fc3": linear}


def test_batch_normalisation_adds_layers_and_draws_the_same_weights() -> None:
    torch.manual_seed(3)
    plain = LeNet5(1).state_dict()
    torch.manual_seed(3)
    trained = BatchNormLeNet5(1).state_dict()
    assert list(trained)[: len(plain)] == list(plain) and {name[:4] for name in trained.keys() - plain.keys()} == {
        "norm"
    }
    assert all(torch.equal(value, trained[name]) for name, value in plain.items())


def test_batch_normalisation_folds_into_the_weights_of_lenet5() -> None:
    trained = make_network("lenet5-bn", width=1)
    assert isinstance(trained, BatchNormLeNet5)
    images = torch.randn(64, 3, 32, 32)
    trained(images)  # running statistics leave their start
    for norm in (trained.norm1, trained.norm2, trained.norm3, trained.norm4):
        torch.nn.init.normal_(norm.bias)
    folded = trained.eval().fold()
    assert type(folded) is LeNet5 and not folded.training
    torch.testing.assert_close(folded(images), trained(images))
    with pytest.raises(AssertionError):  # the weights alone, without the statistics, answer otherwise
        folded.load_state_dict(trained.state_dict(), strict=False)
        torch.testing.assert_close(folded(images), trained(images))


def test_adding_a_network_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Linear(torch.nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3072, num_classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1))

    monkeypatch.setattr(networks, "Linear", Linear, raising=False)
    monkeypatch.setitem(NETWORKS, "linear", NetworkClass("Linear", "linear"))
    path = write_checkpoint(tmp_path / "a.ckpt", make_network("linear"), network="linear", width=3)
    assert load_classifier(path)(IMAGES).shape == (5, 10)


@pytest.mark.parametrize("class_name", OWN_NETWORKS)
def test_a_network_in_a_file_of_ones_own_is_classified_with_and_exported(tmp_path: Path, class_name: str) -> None:
    name = own_network(tmp_path, class_name)
    network = make_network(name, sha256=hash_network(name))
    settings: dict[str, Any] = {"network": name, "network_sha256": hash_network(name), "width": 3}
    path = write_checkpoint(tmp_path / "a.ckpt", network, **settings)
    classifier = load_classifier(path, network=name)
    normalised = ((IMAGES - STATE["mean"]) / STATE["std"]).permute(0, 3, 1, 2).contiguous()
    expected = network.eval()(normalised).softmax(1)
    torch.testing.assert_close(classifier(IMAGES), expected)

    export(classifier, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": IMAGES.permute(0, 3, 1, 2).numpy()})
    assert np.abs(probabilities - expected.detach().numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Own(", "SyntaxError: '\\(' was never closed"),
        ("raise OSError('two\\nlines')", "OSError: two lines"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import nowhere", "ModuleNotFoundError"),
        ("", "has no torch.nn.Module called Own"),
        ("class Own: pass", "has no torch.nn.Module called Own"),
        ("Own = 3", "has no torch.nn.Module called Own"),
        ("from torch.nn import Linear as Own", "TypeError: .*out_features"),
        ("from torch.nn import Module as Own", "TypeError: "),
        (
            "from torch.nn import Module\nclass Own(Module):\n def __init__(self, n): super().__init__()",
            "forward",
        ),
        ("from torch.nn import LazyLinear as Own", r"makes \[2, 3, 32, 10\] of images .* not logits \[2, 10\]"),
        ("class Own(\x00", "Error: .*null"),
    ],
)
def test_a_file_without_a_network_that_works_is_one_line(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(UsageError, match=reason) as raised:
        make_network(f"{tmp_path / 'own.py'}:Own")
    assert str(raised.value).startswith(f"{tmp_path / 'own.py'}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("ask", [make_network, hash_network])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, ask: Any) -> None:
    (tmp_path / "folder.py").mkdir()
    for name in ("none.py", "folder.py"):
        with pytest.raises(UsageError, match=f"^{tmp_path / name}: \\w") as raised:
            ask(f"{tmp_path / name}:Own")
        assert "\n" not in str(raised.value)


def test_layers_that_learn_their_sizes_from_an_image_know_them_when_the_network_is_made(tmp_path: Path) -> None:
    source = "from torch import nn\nclass Own(nn.Sequential):\n"
    source += "    def __init__(self, classes): super().__init__(nn.Flatten(), nn.LazyLinear(classes))"
    (tmp_path / "own.py").write_text(source)
    network = make_network(f"{tmp_path / 'own.py'}:Own")
    assert [tuple(p.shape) for p in network.parameters()] == [(10, 3072), (10,)] and network.training


def test_the_file_of_a_network_is_known_by_its_content(tmp_path: Path) -> None:
    name = own_network(tmp_path / "a", "Perceptron")
    sha256 = hash_network(name)
    assert sha256 == hashlib.sha256((tmp_path / "a" / "own.py").read_bytes()).hexdigest()
    assert hash_network(own_network(tmp_path / "b", "Perceptron")) == sha256
    assert hash_network("lenet5") is None
    (tmp_path / "a" / "own.py").write_text(OWN_NETWORKS["Perceptron"].replace("Tanh", "ReLU"))  # of the same length
    with pytest.raises(UsageError, match="not the file that the run used"):
        make_network(name, sha256=sha256)
    assert "ReLU" in str(make_network(name, sha256=hash_network(name)))


def test_a_file_may_use_what_needs_its_module(tmp_path: Path) -> None:
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
    source += "@dataclass\nclass Sizes:\n    inner: int = 8\n    known: ClassVar[int] = 3\n"
    (tmp_path / "numpy.py").write_text(source + OWN_NETWORKS["Perceptron"].replace("16", "Sizes().inner"))
    assert make_network(f"{tmp_path / 'numpy.py'}:Perceptron") and sys.modules["numpy"] is np


def test_test_time_augmentation_is_the_mean_over_an_image_and_its_horizontal_flip() -> None:
    network, images = sure_network(), torch.randn(3, 3, 32, 32)
    both = HorizontalFlipAverage(network)
    torch.testing.assert_close(both(images), (network(images) + network(images.flip(3))) / 2)
    torch.testing.assert_close(both(images), both(images.flip(3)))


# Checkpoints


def test_a_checkpoint_of_the_present_format_says_all_itself(tmp_path: Path) -> None:
    config = RunConfig(width=1, denoise="median", normalize="image", val_size=100, split_seed=3)
    state = {"preprocessing": config.group(Preprocessing).plain()}
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "a.ckpt", state=state, **config.plain()))
    assert checkpoint.flags == config.plain()
    for kind, found in ((Network, checkpoint.network), (Data, checkpoint.data)):
        assert found == config.group(kind)
    assert checkpoint.preprocessing == config.group(Preprocessing)


def test_what_a_checkpoint_writes_is_read_as_the_same(tmp_path: Path) -> None:
    first = load_checkpoint(write_checkpoint(tmp_path / "a.ckpt", state={"preprocessing": ZCA, "whitening": FILTER}))
    torch.save(first.to_entries(), tmp_path / "b.ckpt")
    second = load_checkpoint(tmp_path / "b.ckpt")
    for name in ("flags", "epoch", "network", "data", "preprocessing", "class_names"):
        assert getattr(first, name) == getattr(second, name)
    assert first.whitening is not None and second.whitening is not None
    assert np.array_equal(first.whitening, second.whitening)
    assert all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


@pytest.mark.parametrize("format", [FORMAT - 1, FORMAT + 1, "2", None, 2.5])
def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, format: Any) -> None:
    path = change_entries(write_checkpoint(tmp_path / "other.ckpt"), format=format)
    with pytest.raises(UsageError, match=rf"^{path}: has format {format}, .* commit 9edcdda is the last") as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["network", "network_sha256", "width", "val_size", "select_on"])
def test_a_checkpoint_that_lacks_a_setting_of_its_format_is_refused(tmp_path: Path, missing: str) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt")
    change_entries(path, flags={name: value for name, value in FLAGS.items() if name != missing})
    with pytest.raises(UsageError, match=rf"a\.ckpt: .*lacks {missing}$"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", PREPROCESSED)
def test_a_checkpoint_that_lacks_a_setting_of_preprocessing_is_refused(tmp_path: Path, missing: str) -> None:
    there = {name: value for name, value in PREPROCESSED.items() if name != missing}
    with pytest.raises(UsageError, match=rf"a\.ckpt: .*lacks {missing}$"):
        path = write_checkpoint(tmp_path / "a.ckpt")
        load_checkpoint(change_entries(path, CIFAR10DataModule=STATE | {"preprocessing": there}))


@pytest.mark.parametrize(
    "entries",
    [
        {"flags": [1, 2]},
        {"flags": FLAGS | {"width": "wide"}},
        {"flags": FLAGS | {"width": 10**400}},
        {"flags": FLAGS | {"network": "vgg"}},
        {"epoch": "last"},
        {"state_dict": 3},
        {"state_dict": {}},
        {"state_dict": {"model.fc3.bias": 1}},
        {"CIFAR10DataModule": None},
        {"CIFAR10DataModule": STATE | {"mean": 0.5}},
        {"CIFAR10DataModule": STATE | {"preprocessing": [1]}},
        {"CIFAR10DataModule": STATE | {"preprocessing": ZCA, "whitening": FILTER.double()}},
        {"CIFAR10DataModule": STATE | {"preprocessing": ZCA, "whitening": FILTER[:2]}},
        {"CIFAR10DataModule": STATE | {"preprocessing": ZCA, "whitening": None}},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"class_names": 10},
        {"class_names": ["cat", "dog"]},
        {"class_names": [{}] * 10},
    ],
    ids=str,
)
def test_entries_that_are_not_what_they_should_be_are_one_line(tmp_path: Path, entries: dict[str, Any]) -> None:
    change_entries(write_checkpoint(tmp_path / "odd.ckpt"), **entries)
    with pytest.raises(UsageError, match=r"odd\.ckpt: does not fit this network: .") as raised:
        load_classifier(tmp_path / "odd.ckpt")
    assert "\n" not in str(raised.value)


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{tmp_path}: a folder without last\.ckpt$"):
        load_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path).path == tmp_path / "last.ckpt"
    for name in ("best-epoch=10-val_acc=0.7100.ckpt", "best-epoch=09-val_acc=0.7200.ckpt"):  # a kill may leave both
        write_checkpoint(tmp_path / name)
    assert load_checkpoint(tmp_path).path.name == "best-epoch=09-val_acc=0.7200.ckpt"
    assert load_checkpoint(tmp_path, last=True).path == tmp_path / "last.ckpt"


def test_any_damage_to_a_checkpoint_is_one_line_or_harmless(tmp_path: Path) -> None:
    content = write_checkpoint(tmp_path / "whole.ckpt").read_bytes()
    draw = random.Random(0)
    ends = [*range(3000), *range(len(content) - 3000, len(content))]  # the pickle, and the list of what is where
    for number in range(150):
        damaged = bytearray(content)
        for _ in range(1 + number % 5):
            damaged[draw.choice(ends)] = draw.randrange(256)
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(damaged[: draw.randrange(len(damaged)) if number % 5 == 0 else None])
        try:
            load_classifier(path)
        except UsageError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.parametrize("class_name", OWN_NETWORKS)
def test_a_checkpoint_brings_no_code(tmp_path: Path, class_name: str) -> None:
    name = own_network(tmp_path, class_name)
    path = write_checkpoint(tmp_path / "a.ckpt", make_network(name), network=name, width=3)
    trap = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(trap)!r}, 'w')\n" + OWN_NETWORKS[class_name])
    with pytest.raises(UsageError, match=r"a\.ckpt: its network is .*a checkpoint holds no code") as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value) and not trap.exists()
    load_classifier(path, network=name)
    assert trap.exists()


def test_the_code_of_a_network_may_have_moved_but_not_changed(tmp_path: Path) -> None:
    here, there = own_network(tmp_path / "a", "Perceptron"), own_network(tmp_path / "b", "Perceptron")
    settings: dict[str, Any] = {"network": here, "network_sha256": hash_network(here), "width": 3}
    path = write_checkpoint(tmp_path / "a.ckpt", make_network(here), **settings)
    (tmp_path / "a" / "own.py").unlink()
    checkpoint = load_checkpoint(path, there)
    assert checkpoint.network == replace(Network(), network=there, network_sha256=hash_network(there))
    assert checkpoint.flags["network"] == there
    checkpoint.make_network()
    (tmp_path / "b" / "own.py").write_text(OWN_NETWORKS["Perceptron"].replace("Tanh", "ReLU"))
    with pytest.raises(UsageError, match="not the file that the run used"):
        load_classifier(path, network=there)


def test_the_network_that_is_named_has_to_be_that_of_the_run(tmp_path: Path) -> None:
    own = own_network(tmp_path, "Perceptron")
    of_its_own = write_checkpoint(tmp_path / "own.ckpt", make_network(own), network=own, width=3)
    known = write_checkpoint(tmp_path / "known.ckpt")
    assert load_checkpoint(known, "lenet5").network.network == "lenet5"
    for path, name in ((known, own), (known, "resnet"), (of_its_own, "lenet5"), (of_its_own, f"{own}2")):
        with pytest.raises(UsageError, match=r"its network is .*, not "):
            load_checkpoint(path, name)
    with pytest.raises(UsageError, match="not vgg"):
        load_checkpoint(of_its_own, "vgg")


def test_released_weights_load_though_they_lack_folders_and_tags() -> None:
    checkpoint = load_checkpoint(ROOT / "checkpoints" / "lenet5-cifar10.ckpt")
    assert "data_dir" not in checkpoint.flags and checkpoint.data == Data(val_size=2500)
    assert checkpoint.preprocessing == Preprocessing(normalize="zca-half")
    assert checkpoint.network == Network(network="lenet5") and checkpoint.epoch == 247
    assert load_classifier(checkpoint.path)(IMAGES).shape == (5, 10)
