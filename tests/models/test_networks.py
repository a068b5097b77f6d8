"""The networks' layers, shapes and weights, folding and test-time augmentation."""

import pytest
import torch
import torch.nn.functional as F

from made_up import sure_network
from models.networks import BatchNormLeNet5, HorizontalFlipAverage, LeNet5, ResNet
from models.registry import make_network


@pytest.mark.parametrize(("width", "parameters"), [(3, 548_878), (1, 62_006)])
def test_parameter_counts_are_those_of_the_report_and_of_the_classic_network(width: int, parameters: int) -> None:
    assert sum(p.numel() for p in LeNet5(width).parameters()) == parameters


def test_logits_have_one_column_a_class_whatever_the_memory_format() -> None:
    network = LeNet5()
    images = torch.randn(7, 3, 32, 32)
    logits = network(images)
    assert logits.shape == (7, 10)
    torch.testing.assert_close(logits, network(images.contiguous(memory_format=torch.channels_last)))


def test_the_residual_network_has_the_parameters_that_its_docstring_says() -> None:
    network = ResNet()
    assert sum(p.numel() for p in network.parameters()) == 784_632
    assert network(torch.randn(7, 3, 32, 32)).shape == (7, 10)


def test_relu_after_the_pool_is_the_reports_network() -> None:
    network, x = LeNet5(), torch.randn(4, 3, 32, 32)
    expected = F.max_pool2d(F.relu(network.conv1(x)), 2)
    expected = F.max_pool2d(F.relu(network.conv2(expected)), 2).flatten(1)
    expected = network.fc3(F.relu(network.fc2(F.relu(network.fc1(expected)))))
    torch.testing.assert_close(network(x), expected)


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


def test_test_time_augmentation_is_the_mean_over_an_image_and_its_horizontal_flip() -> None:
    network, images = sure_network(), torch.randn(3, 3, 32, 32)
    both = HorizontalFlipAverage(network)
    torch.testing.assert_close(both(images), (network(images) + network(images.flip(3))) / 2)
    torch.testing.assert_close(both(images), both(images.flip(3)))
