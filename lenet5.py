"""The network alone; needs nothing but PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with max-pooling and ReLU, every layer `width` times as wide as the original.

    `width=3`, one share per colour channel, has 548,878 parameters; `width=1`, the classic sizes, 62,006.
    The weights are channels_last: on a CPU that is what convolution and pooling are fastest with.
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
        """Float images [B, 3, 32, 32] to logits [B, num_classes]; W is `width`."""
        x = images.contiguous(memory_format=torch.channels_last)
        # ReLU and max-pool commute exactly; after the pool, ReLU has a quarter of the elements to do.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # [B, 6W, 28, 28] -> [B, 6W, 14, 14]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [B, 16W, 10, 10] -> [B, 16W, 5, 5]
        x = x.flatten(1)  # [B, 400W]
        x = F.relu(self.fc1(x))  # [B, 120W]
        x = F.relu(self.fc2(x))  # [B, 84W]
        return self.fc3(x)


class Mirrored(nn.Module):
    """Any network from images to logits, asked twice: the mean of the logits of each image and of its mirror."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Float images [B, 3, H, W] to logits [B, classes]."""
        return (self.network(images) + self.network(images.flip(3))) / 2
