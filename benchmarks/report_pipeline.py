"""The report's training pipeline, to compare with: image by image through PIL and torchvision, and a plain loop."""

import itertools
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar10 import records

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, in [0, 1]


class Items(Dataset):
    """The training images as in torchvision's CIFAR10: float32 [3, 32, 32] and an int."""

    def __init__(self, data_dir: Path) -> None:
        self.images, labels = records.load(data_dir / "cifar-10-batches-bin", train=True)  # uint8 [N, 32, 32, 3]
        self.labels: list[int] = labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def network() -> nn.Sequential:
    """Return the report's LeNet-5, 548,878 parameters: float [B, 3, 32, 32] to logits [B, 10]."""
    return nn.Sequential(
        *(nn.Conv2d(3, 18, 5), nn.ReLU(), nn.MaxPool2d(2)),  # [B, 18, 14, 14]
        *(nn.Conv2d(18, 48, 5), nn.ReLU(), nn.MaxPool2d(2)),  # [B, 48, 5, 5]
        nn.Flatten(),
        *(nn.Linear(1200, 360), nn.ReLU()),
        *(nn.Linear(360, 252), nn.ReLU()),
        nn.Linear(252, 10),
    )


def measure_training(data_dir: Path, batch_size: int, workers: int, images: int) -> float:
    """Return the training images/s over some `images`, after a first step that starts the workers, not timed."""
    loader = DataLoader(Items(data_dir), batch_size, shuffle=True, num_workers=workers)
    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    steps, running_loss, start = images // batch_size, 0.0, 0.0
    for step, (inputs, labels) in enumerate(itertools.islice(loader, steps + 1)):
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        if step == 0:
            start = time.perf_counter()
    return steps * batch_size / (time.perf_counter() - start)
