"""Networks by name, and from files of one's own."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from core.errors import UsageError
from made_up import (
    OWN_NETWORKS,
    STATE,
    own_network,
    write_checkpoint,
)
from models import networks
from models.classifier import load_classifier
from models.onnx import export
from models.registry import NETWORKS, NetworkClass, hash_network, make_network

IMAGES = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("class_name", ["AllConvolutional", "Net"])
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
