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

    c, network, known = config, ("network", "width"), NETWORKS.get(config.network)
    strength, severity = c.denoise_strength or DENOISE[c.denoise][0], c.severity or DEFAULT_SEVERITY
    corrupted = "all images" if c.corrupt_on == "both" else "the test images"
    versions = f" ({c.corruption_versions} versions of each)" if c.corruption_versions > 1 else ""
    one_process = (c.devices, c.num_nodes) == (1, 1)
    # Label, text or something false, and the settings that the text is about.
    phrases: list[tuple[str, object, tuple[str, ...]]] = [
        ("network", known.title if known else c.network, network),
        ("network", known and known.has_width and f"width {c.width}", network),
        ("network", parameters and f"{parameters:,} parameters", network),
        ("network", c.teacher and f"distilled from {c.teacher} with weight {c.teacher_weight:g}", ("teacher_sha256",)),
        (
            "preprocessing",
            c.corrupt != "none" and f"{c.corrupt} corruption of severity {severity} of {corrupted}",
            ("corrupt", "severity", "corrupt_on"),
        ),
        (
            "preprocessing",
            c.denoise != "none" and f"{c.denoise} filter (strength {strength:g})",
            ("denoise", "denoise_strength"),
        ),
        ("preprocessing", c.segment != "none" and f"{c.segment} segmentation", ("segment",)),
        ("preprocessing", NORMALIZATIONS[c.normalize], ("normalize",)),
        ("augmentation", f"random crop (up to {c.crop} pixels)" if c.crop else "no crop", ("crop",)),
        ("augmentation", "horizontal flip" if c.flip else "no flip", ("flip",)),
        ("augmentation", c.cutout and f"cutout of {c.cutout} pixels", ("cutout",)),
        (
            "augmentation",
            c.random_corruption and f"{c.random_corruption:.0%} corrupted images{versions}",
            ("random_corruption", "corruption_versions"),
        ),
        (
            "augmentation",
            c.plain_epochs and f"neither crop nor cutout in the last {c.plain_epochs} epochs",
            ("plain_epochs",),
        ),
        ("optimizer", c.optimizer, ("optimizer",)),
        ("optimizer", f"lr {c.lr:g}", ("lr",)),
        ("optimizer", f"{c.schedule} schedule", ("schedule",)),
        ("optimizer", f"weight decay {c.weight_decay:g}", ("weight_decay",)),
        (
            "optimizer",
            c.optimizer == "sgd" and f"{'Nesterov momentum' if c.nesterov else 'momentum'} {c.momentum:g}",
            ("optimizer", "momentum", "nesterov"),
        ),
        ("optimizer", c.label_smoothing and f"label smoothing {c.label_smoothing:g}", ("label_smoothing",)),
        ("batch", f"{c.batch_size} images", ("batch_size",)),
        ("epochs", str(c.epochs), ("epochs",)),
        ("images", f"{TRAINING_IMAGES - c.val_size:,} for training", ("val_size",)),
        ("images", f"{c.val_size:,} for validation", ("val_size",)),
        ("images", c.split_seed and f"split seed {c.split_seed}", ("split_seed",)),
        ("images", c.select_on == "test" and "the epoch is chosen on the test set", ("select_on",)),
        ("number format", c.precision, ("precision",)),
        ("number format", c.threads and f"{c.threads} thread{'s' * (c.threads != 1)}", ("threads",)),
        ("number format", c.accelerator != "cpu" and c.accelerator, ("accelerator",)),
        (
            "number format",
            not one_process and f"devices {c.devices}, nodes {c.num_nodes}, strategy {c.strategy}",
            ("devices", "num_nodes", "strategy"),
        ),
        ("seed", str(c.seed), ("seed",)),
    ]
    rows: dict[str, list[str]] = {}
    for label, text, names in phrases:
        if text and not set(names) & set(without):
            rows.setdefault(label, []).append(str(text))
    return {label: ", ".join(texts) for label, texts in rows.items()}


def describe_in_lines(config: RunConfig, parameters: int | None = None, verb: str = "Training") -> str:
    """Return what is trained as three lines for the screen, the first of which starts with `verb`."""
    rows = describe(config, parameters)
    return (
        f"{verb} {rows['network']}: {config.epochs} epochs, batch {config.batch_size}, {rows['optimizer']}\n"
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
