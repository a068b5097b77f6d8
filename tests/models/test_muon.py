"""Muon: which weights it orthogonalizes, that it computes what PyTorch's own computes, and exact resume."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.muon import ADAMW_RATE, COEFFICIENTS, ITERATIONS, MOMENTUM, Muon, orthogonalize
from models.networks import BatchNormLeNet5, LeNet5
from models.optimizers import make_optimizer


def matrices(network: nn.Module) -> set[str]:
    """The names of the weights that Muon orthogonalizes."""
    group = Muon(network.parameters(), lr=0.01).param_groups[0]
    names = [name for name, _ in network.named_parameters()]
    return {name for name, is_matrix in zip(names, group["is_matrix"], strict=True) if is_matrix}


def test_filters_and_hidden_layers_are_orthogonalized_if_they_are_not_too_large() -> None:
    hidden = {"conv1.weight", "conv2.weight", "fc2.weight"}
    assert matrices(LeNet5()) == matrices(BatchNormLeNet5()) == hidden  # fc1, 360 x 1200, would take most of the time
    assert matrices(LeNet5(width=1)) == {*hidden, "fc1.weight"}
    assert matrices(nn.Linear(8, 10)) == set()  # the classifier
    assert matrices(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10))) == {"0.weight"}
    assert matrices(nn.BatchNorm2d(8)) == set()


@pytest.mark.parametrize("shape", [(18, 75), (75, 18), (70, 350)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_orthogonalized_matrix_has_the_same_directions_and_singular_values_near_1(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix = 100 * torch.randn(shape)
    found = orthogonalize(matrix, dtype)
    assert found.shape == shape and found.dtype == torch.float32
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ found @ vt.T
    assert inside.diagonal().min() > 0.6 and inside.diagonal().max() < 1.3
    assert (inside - inside.diagonal().diag()).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)
    assert torch.equal(orthogonalize(matrix.T, dtype), found.T)
    assert torch.equal(orthogonalize(torch.zeros(shape), dtype), torch.zeros(shape))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(96, 128), nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(images).tanh())


def train(network: Two, optimizers: list[Any], steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        images, labels = torch.randn(8, 96, generator=generator), torch.randint(10, (8,), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_are_updated_as_by_pytorchs_muon_and_the_rest_as_by_adamw() -> None:
    ours = Two()
    theirs = copy.deepcopy(ours)
    train(ours, [Muon(ours.parameters(), lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)], steps=5)
    first, last = theirs.first, theirs.last
    muon = torch.optim.Muon(
        [first.weight],
        lr=0.02,
        weight_decay=0.1,
        momentum=MOMENTUM,
        ns_steps=ITERATIONS,
        ns_coefficients=COEFFICIENTS,
    )
    others = [first.bias, *last.parameters()]
    adamw = torch.optim.AdamW(others, lr=0.02 * ADAMW_RATE, weight_decay=0.1, fused=True)
    train(theirs, [muon, adamw], steps=5)
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_a_filter_in_channels_last_is_updated_as_one_that_is_not() -> None:
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        filters, classifier = nn.Conv2d(3, 96, 5), nn.Linear(96, 10)
        filters.to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = Muon([*filters.parameters(), *classifier.parameters()], lr=0.02)
        F.cross_entropy(classifier(filters(torch.randn(4, 3, 8, 8)).relu().mean((2, 3))), torch.arange(4)).backward()
        optimizer.step()
        results.append(filters.weight.detach().contiguous())
    torch.testing.assert_close(*results)


def test_frozen_weights_stay_and_a_closure_is_called() -> None:
    network = Two()
    network.first.weight.requires_grad_(False)
    before = network.first.weight.clone()
    optimizer = make_optimizer(network.parameters(), "muon", lr=0.008, weight_decay=5e-4)

    def closure() -> float:
        loss = network(torch.ones(2, 96)).square().mean()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure)
    assert torch.equal(network.first.weight, before) and isinstance(optimizer, Muon)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["dtype"]) == (0.008, torch.float32)
