"""Networks that map images to logits; they need nothing but PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with max-pooling and ReLU, every layer `width` times as wide as the original.

    `width=3` has 548,878 parameters; `width=1`, the original sizes, has 62,006. The weights are channels_last, with
    which convolution and pooling are fastest on a CPU.
    """

    def __init__(self, width: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6 * width, kernel_size=5)
        self.conv2 = nn.Conv2d(6 * width, 16 * width, kernel_size=5)
        self.fc1 = nn.Linear(16 * width * 5 * 5, 120 * width)
        self.fc2 = nn.Linear(120 * width, 84 * width)
        self.fc3 = nn.Linear(84 * width, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [B, num_classes] of float images [B, 3, 32, 32]; W is `width`."""
        x = images.contiguous(memory_format=torch.channels_last)
        # ReLU and max-pool commute exactly; after the pool, ReLU has a quarter of the elements to do.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # [B, 6W, 28, 28] -> [B, 6W, 14, 14]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [B, 16W, 10, 10] -> [B, 16W, 5, 5]
        x = x.flatten(1)  # [B, 400W]
        x = F.relu(self.fc1(x))  # [B, 120W]
        x = F.relu(self.fc2(x))  # [B, 84W]
        return self.fc3(x)


class BatchNormLeNet5(LeNet5):
    """`LeNet5` with batch normalization (Ioffe and Szegedy 2015) before each ReLU, which trains faster.

    Only training needs it: `fold` merges it into the weights of a `LeNet5`.
    """

    def __init__(self, width: int = 3, num_classes: int = 10) -> None:
        super().__init__(width, num_classes)
        self.width = width
        self.norm1 = nn.BatchNorm2d(6 * width)
        self.norm2 = nn.BatchNorm2d(16 * width)
        self.norm3 = nn.BatchNorm1d(120 * width)
        self.norm4 = nn.BatchNorm1d(84 * width)
        for norm in (self.norm1, self.norm2, self.norm3, self.norm4):
            # Scales stay 1, since the next layer has its own, and only a positive one commutes with max-pool.
            norm.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [B, num_classes] of float images [B, 3, 32, 32]; shapes are those of `LeNet5`."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        x = F.relu(self.norm2(F.max_pool2d(self.conv2(x), 2)))
        x = F.relu(self.norm3(self.fc1(x.flatten(1))))
        return self.fc3(F.relu(self.norm4(self.fc2(x))))

    def fold(self) -> LeNet5:
        """Return a `LeNet5` in evaluation mode whose logits equal this network's, up to rounding.

        This network must be in evaluation mode.
        """
        network = LeNet5(self.width, self.fc3.out_features).eval()
        network.conv1 = fuse_conv_bn_eval(self.conv1, self.norm1)
        network.conv2 = fuse_conv_bn_eval(self.conv2, self.norm2)
        network.fc1 = fuse_linear_bn_eval(self.fc1, self.norm3)
        network.fc2 = fuse_linear_bn_eval(self.fc2, self.norm4)
        network.fc3.load_state_dict(self.fc3.state_dict())
        return network


class ResNet(nn.Module):
    """A small residual network (He et al. 2015) with batch normalization, the teacher of `LeNet5`; 784,632 parameters.

    It halves the resolution after the first convolution, so that a CPU can train it in minutes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 24, pool=True), _convolution(24, 32))
        self.stage1 = nn.Sequential(_convolution(32, 128, pool=True), _Residual(128))
        self.stage2 = nn.Sequential(_convolution(128, 128, pool=True), _Residual(128))
        self.fc = nn.Linear(128, num_classes, bias=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [B, num_classes] of float images [B, 3, 32, 32]."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)  # [B, 32, 16, 16]
        x = self.stage1(x)  # [B, 128, 8, 8]
        x = self.stage2(x)  # [B, 128, 4, 4]
        return self.fc(x.amax((2, 3)))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _convolution(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """Make a 3 x 3 convolution, a max-pool if `pool`, batch normalization and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)]
    layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.BatchNorm2d(channels_out), nn.ReLU())


class HorizontalFlipAverage(nn.Module):
    """Test-time augmentation: average a network's logits of each image and of its horizontal flip."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [B, classes] of float images [B, 3, H, W]."""
        return (self.network(images) + self.network(images.flip(3))) / 2
