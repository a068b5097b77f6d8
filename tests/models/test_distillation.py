"""The teacher: what its identity is made of, what it has seen, its logits and where they are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar10.config import Data
from cifar10.preprocessing import Preprocessing, preprocess
from conftest import ROOT
from core.errors import UsageError
from made_up import STATE, change_entries, own_network, sure_network, write_checkpoint
from models import distillation
from models.classifier import load_classifier
from models.config import Teacher
from models.distillation import hash_teacher, load_teacher
from models.networks import LeNet5
from models.registry import make_network

RELEASED = ROOT / "checkpoints" / "lenet5-cifar10.ckpt"
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
ZCA = {"normalize": "zca"}


def test_a_teacher_is_the_same_wherever_it_lies_and_whatever_else_its_file_holds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    known = hash_teacher(change_entries(write_checkpoint(tmp_path / "a" / "last.ckpt"), epoch=9))
    assert len(known) == 64 and known == hash_teacher(tmp_path / "a")
    others = [
        change_entries(
            write_checkpoint(tmp_path / "b.ckpt"), epoch=7, callbacks={"best": "there"}, optimizer_states=[1]
        ),
        write_checkpoint(tmp_path / "c.ckpt", data_dir="there", threads=2),
        write_checkpoint(tmp_path / "e.ckpt", sure_network().to(memory_format=torch.contiguous_format)),
    ]
    assert {hash_teacher(path) for path in others} == {known}


def test_the_sha256_of_a_teacher_is_that_of_all_earlier_versions(tmp_path: Path) -> None:
    """Runs have written it down: another one would make their teachers others."""
    plain = LeNet5(width=1)
    for parameter in plain.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    found = [hash_teacher(path) for path in (RELEASED, write_checkpoint(tmp_path / "a.ckpt", plain))]
    assert [sha256[:16] for sha256 in found] == ["c276b3e14b6c3fc8", "95e44abdbe50f34a"]


def test_whatever_a_teacher_answers_by_makes_it_another_one(tmp_path: Path) -> None:
    trained, wider = sure_network(), sure_network()
    trained.fc1.weight.data[3, 5] += 1e-6
    wider.fc3.double()
    whitening = torch.zeros(3, 244)
    others = [
        write_checkpoint(tmp_path / "a.ckpt"),
        write_checkpoint(tmp_path / "b.ckpt", trained),
        write_checkpoint(tmp_path / "c.ckpt", wider),
        write_checkpoint(tmp_path / "d.ckpt", state={"mean": STATE["mean"] + 1}),
        write_checkpoint(tmp_path / "e.ckpt", state={"std": STATE["std"] + 1}),
        write_checkpoint(tmp_path / "f.ckpt", state={"preprocessing": {"denoise": "median"}}),
        write_checkpoint(tmp_path / "g.ckpt", state={"preprocessing": ZCA, "whitening": whitening}),
        write_checkpoint(tmp_path / "h.ckpt", state={"preprocessing": ZCA, "whitening": whitening + 1}),
    ]
    assert len({hash_teacher(path) for path in others}) == len(others)


def test_another_teacher_than_that_of_the_run_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt")
    config = Teacher(teacher=path, teacher_sha256=hash_teacher(path))
    load_teacher(config, Data(), tmp_path)
    write_checkpoint(path, LeNet5(width=1))
    with pytest.raises(UsageError, match=r"^the teacher is another one than that of the run: ") as raised:
        load_teacher(config, Data(), tmp_path)
    assert "\n" not in str(raised.value)
    load_teacher(replace(config, teacher_sha256=None), Data(), tmp_path)


@pytest.mark.parametrize("ask", [hash_teacher, lambda path: load_teacher(Teacher(teacher=path), Data(), path)])
def test_a_teacher_that_cannot_be_loaded_is_one_line(tmp_path: Path, ask: Any) -> None:
    with pytest.raises(UsageError, match=r"not there; python train\.py --config teacher trains"):
        ask(tmp_path / "none")
    own = own_network(tmp_path, "Perceptron")
    with pytest.raises(UsageError, match="a checkpoint holds no code"):
        ask(write_checkpoint(tmp_path / "own.ckpt", make_network(own), network=own, width=3))
    (tmp_path / "damaged.ckpt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"damaged\.ckpt: "):
        ask(tmp_path / "damaged.ckpt")


def test_the_folder_of_a_teacher_that_stopped_half_way_is_refused_but_not_its_checkpoint(tmp_path: Path) -> None:
    path = change_entries(write_checkpoint(tmp_path / "last.ckpt", epochs=5), epoch=3)
    with pytest.raises(UsageError, match=r"stopped after epoch 4 of 5: train\.py --resume .* ends it$"):
        hash_teacher(tmp_path)
    sha256 = hash_teacher(path)
    change_entries(path, epoch=4)
    assert hash_teacher(tmp_path) == sha256


@pytest.mark.parametrize(
    ("trained", "taught", "seen"),
    [
        ({}, {}, False),
        ({}, {"val_size": 1000}, False),  # which are among those that the teacher did not see
        ({}, {"val_size": 0, "split_seed": 1}, False),  # there are none
        ({}, {"val_size": 10_000}, True),
        ({}, {"split_seed": 1}, True),
        ({"val_size": 0}, {}, True),
    ],
)
def test_a_teacher_that_has_seen_validation_images_is_refused(
    tmp_path: Path, trained: dict[str, Any], taught: dict[str, Any], seen: bool
) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", **trained)
    if seen:
        with pytest.raises(UsageError, match="has seen validation images") as raised:
            load_teacher(Teacher(teacher=path), Data(**taught), tmp_path)
        assert "\n" not in str(raised.value)
    else:
        load_teacher(Teacher(teacher=path), Data(**taught), tmp_path)


def test_its_logits_are_the_mean_over_an_image_and_its_horizontal_flip_after_its_own_preprocessing(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"denoise": "median"}
    path = write_checkpoint(tmp_path / "a.ckpt", state={"preprocessing": settings})
    found = load_teacher(Teacher(teacher=path), Data(), tmp_path / "kept")(IMAGES)
    pixels = preprocess(IMAGES, Preprocessing(**settings))
    classifier = load_classifier(path)
    expected = (classifier.compute_logits(pixels) + classifier.compute_logits(pixels[:, :, ::-1].copy())) / 2
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_logits_are_computed_once_for_the_same_teacher_images_and_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(path: Path, images: np.ndarray = IMAGES) -> int:
        """How many were computed and kept so far, after asking for these."""
        load_teacher(Teacher(teacher=path), Data(), tmp_path / "kept")(images)
        return len(list((tmp_path / "kept").glob("teacher-*.bin")))

    one, other = write_checkpoint(tmp_path / "a.ckpt"), write_checkpoint(tmp_path / "b.ckpt", LeNet5(width=1))
    assert [logits(one), logits(write_checkpoint(tmp_path / "copy.ckpt")), logits(other), logits(one, IMAGES[:3])] == [
        1,
        1,
        2,
        3,
    ]
    monkeypatch.setattr(distillation.torch, "__version__", "another version")
    assert [logits(one), logits(one)] == [4, 4]
