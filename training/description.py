"""The description of what a run trains: one text for the screen, rows for tables. Light to import."""

import platform
from collections.abc import Collection
from importlib.metadata import version

from cifar10.filters import DEFAULT_SEVERITY, DENOISE
from models.config import Network
from models.registry import NETWORKS, make_network
from training.config import RunConfig

TRAINING_IMAGES = 50_000
NORMALIZATIONS = {
    "dataset": "mean/std normalization",
    "image": "each image normalized by itself",
    "contrast": "local contrast equalization (CLAHE)",
    "zca": "whitening",
    "zca-half": "half whitening",
    "none": "no normalization",
}


def describe(config: RunConfig, parameters: int | None = None, without: Collection[str] = ()) -> dict[str, str]:
    """Return what is trained as texts by label: network, preprocessing, ..., seed.

    Args:
        parameters: The network's number of parameters, if it is known.
        without: Settings to leave out, such as those that vary among runs; a label without a text is left out too.
    """
    c, known = config, NETWORKS.get(config.network)
    rows: dict[str, list[str]] = {}

    def say(label: str, settings: str, text: object) -> None:
        """Add a text about these settings, or nothing if the text is false."""
        if text and not set(settings.split()) & set(without):
            rows.setdefault(label, []).append(str(text))

    say("network", "network width", known.title if known else c.network)
    say("network", "network width", known and known.has_width and f"width {c.width}")
    say("network", "network width", parameters and f"{parameters:,} parameters")
    say("network", "teacher_sha256", c.teacher and f"distilled from {c.teacher} with weight {c.teacher_weight:g}")
    if c.corrupt != "none":
        images = "all images" if c.corrupt_on == "both" else "the test images"
        text = f"{c.corrupt} corruption of severity {c.severity or DEFAULT_SEVERITY} of {images}"
        say("preprocessing", "corrupt severity corrupt_on", text)
    if c.denoise != "none":
        strength = c.denoise_strength or DENOISE[c.denoise][0]
        say("preprocessing", "denoise denoise_strength", f"{c.denoise} filter (strength {strength:g})")
    say("preprocessing", "segment", c.segment != "none" and f"{c.segment} segmentation")
    say("preprocessing", "normalize", NORMALIZATIONS[c.normalize])
    say("augmentation", "crop", f"random crop (up to {c.crop} pixels)" if c.crop else "no crop")
    say("augmentation", "flip", "horizontal flip" if c.flip else "no flip")
    say("augmentation", "cutout", c.cutout and f"cutout of {c.cutout} pixels")
    if c.random_corruption:
        versions = f" ({c.corruption_versions} versions of each)" if c.corruption_versions > 1 else ""
        text = f"{c.random_corruption:.0%} corrupted images{versions}"
        say("augmentation", "random_corruption corruption_versions", text)
    plain = c.plain_epochs and f"neither crop nor cutout in the last {c.plain_epochs} epochs"
    say("augmentation", "plain_epochs", plain)
    say("optimizer", "optimizer", c.optimizer)
    say("optimizer", "lr", f"lr {c.lr:g}")
    say("optimizer", "schedule", f"{c.schedule} schedule")
    say("optimizer", "weight_decay", f"weight decay {c.weight_decay:g}")
    if c.optimizer == "sgd":
        kind = "Nesterov momentum" if c.nesterov else "momentum"
        say("optimizer", "optimizer momentum nesterov", f"{kind} {c.momentum:g}")
    say("optimizer", "label_smoothing", c.label_smoothing and f"label smoothing {c.label_smoothing:g}")
    say("batch", "batch_size", f"{c.batch_size} images")
    say("epochs", "epochs", c.epochs)
    say("images", "val_size", f"{TRAINING_IMAGES - c.val_size:,} for training")
    say("images", "val_size", f"{c.val_size:,} for validation")
    say("images", "split_seed", c.split_seed and f"split seed {c.split_seed}")
    say("images", "select_on", c.select_on == "test" and "the epoch is chosen on the test set")
    say("number format", "precision", c.precision)
    say("number format", "threads", c.threads and f"{c.threads} thread{'s' * (c.threads != 1)}")
    say("number format", "accelerator", c.accelerator != "cpu" and c.accelerator)
    if (c.devices, c.num_nodes) != (1, 1):
        text = f"devices {c.devices}, nodes {c.num_nodes}, strategy {c.strategy}"
        say("number format", "devices num_nodes strategy", text)
    say("seed", "seed", str(c.seed))
    return {label: ", ".join(texts) for label, texts in rows.items()}


def describe_in_lines(config: RunConfig, parameters: int | None = None, verb: str = "Training") -> str:
    """Return what is trained as three lines for the screen, the first of which starts with `verb`."""
    rows = describe(config, parameters)
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    return (
        f"{verb} {rows['network']}: {epochs}, batch {config.batch_size}, {rows['optimizer']}\n"
        f"Images: {rows['images']}; {rows['preprocessing']}; {rows['augmentation']}\n"
        f"Number format: {rows['number format']}; seed {config.seed}"
    )


def describe_in_short(config: RunConfig, parameters: int | None = None) -> str:
    """Return what tells runs apart in most cases as a line for the titles of pictures."""
    rows = describe(config, parameters)
    return f"{rows['network']}; {rows['preprocessing']}; {config.optimizer}, lr {config.lr:g}, {config.epochs} epochs"


def describe_versions() -> str:
    """Return the versions of Python and of the packages that decide the result."""
    names = {"torch": "PyTorch", "pytorch-lightning": "Lightning"}
    return ", ".join([f"Python {platform.python_version()}", *(f"{names[name]} {version(name)}" for name in names)])


def count_parameters(network: Network) -> int | None:
    """Return how many parameters the saved network has; None for one of your own. PyTorch is imported.

    Batch normalization that is folded into the weights does not count.
    """
    known = NETWORKS.get(network.network)
    if known is None:
        return None
    import torch

    with torch.device("meta"):  # without memory and random numbers
        made = make_network(known.folds_to or network.network, network.width)
    return sum(parameter.numel() for parameter in made.parameters())
