"""Settings of sweep.py and report.py."""

import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import SettingError
from core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """Sweep: the runs, and where they are kept."""

    recipe: str | None = setting(None, "YAML file of flags for all runs, or the name of a recipe in recipes/.")
    base: str = setting("", 'More flags for all runs, such as "epochs=5 pictures=false".')
    trials: int = setting(20, "Number of runs of each search.", at_least=1, at_most=100_000)
    best_per: str | None = setting(
        None, "Name of a flag. For each of its values, the run with the best validation accuracy is repeated."
    )
    repeat: str | None = setting(None, 'Grid of the repeats of --best_per, such as "seed=1,2,3".')
    name: str | None = setting(None, "Name of the sweep and its folders; null takes the recipe's, else sweep.")
    reuse: Path | None = setting(
        None, "A runs.csv, such as those in results/. Runs with a result in it are not run again."
    )
    retry: bool = setting(False, "Run failed runs again.")
    workers: int | None = setting(
        None,
        "Number of runs at a time, which share the cores; null takes as many as cores and memory allow.",
        at_least=1,
        at_most=4096,
    )
    storage: str | None = setting(
        None,
        "URL of a database, such as postgresql+psycopg://user@host/name; machines with the same command share its "
        "runs. null keeps the study in the log folder.",
    )
    data_dir: Path = setting(Path("data"), "Folder of CIFAR-10.")
    log_dir: Path = setting(Path("logs"), "Folder for logs; the sweep has a folder in it.")
    checkpoint_dir: Path = setting(Path("checkpoints"), "Folder for checkpoints; the sweep has a folder in it.")

    def check(self) -> None:
        super().check()
        check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Report: the runs, and what is compared."""

    name: str | None = setting(None, "Name of the folder in results_dir; null takes the name of the first log folder.")
    seeds: str | None = setting(
        None, 'Seeds of the runs in the table and the comparison, such as "1,2,3"; null takes all.'
    )
    baseline: str | None = setting(
        None,
        'Baseline of the table, such as "denoise=none segment=none". Each setting shows its difference from the same '
        "setting with these flags, paired by seed.",
    )
    results_dir: Path = setting(Path("results"), "Folder for results.")

    def check(self) -> None:
        super().check()
        check_name(self.name)


def check_name(name: str | None) -> None:
    """Raise SettingError if a name could lead to a folder elsewhere."""
    if name and not re.fullmatch(r"\w[\w.-]*", name):
        raise SettingError("name", name, "must be letters, digits and _ . - only")
