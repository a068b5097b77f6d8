"""Tables, curves and comparisons of any number of runs, from what they left in their log folders.

python report.py logs/coursework
python report.py logs/sgd_vs_adam --seeds 1,2,3,4,5,6,7,8 --compare optimizer=sgd optimizer=adam
python report.py logs/optimizers --compare optimizer=sgd optimizer=adam optimizer=adamw
python report.py logs/preprocessing --baseline "denoise=none segment=none normalize=dataset"

Writes results/<name>/: README.md, its tables as CSV and LaTeX, cells.csv (a row a run), curves.csv (a row an epoch) and
pictures, of searches Optuna's too. Runs whose logs are on another machine keep what cells.csv and curves.csv have of
them. Two files in that folder come from elsewhere: notes.md becomes part of the page, and reference.csv has further
columns of the table, by the flags that it names; its `best_epoch` and `accuracy` are the coursework report's, and the
page says how far ours agree with it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar10.errors import UsageError
from cifar10.settings import Settings, setting
from training.cli import Parser, exit_status


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Report: which runs, and what is compared."""

    name: str | None = setting(None, "Of the folder in results_dir; null takes that of the first log folder.")
    seeds: str | None = setting(None, '"1,2,3": table and comparison take the runs with these alone; null takes all.')
    baseline: str | None = setting(
        None,
        '"denoise=none segment=none": the table shows each setting\'s difference, paired by seed, from the one that '
        "has these flags and else its own.",
    )
    results_dir: Path = setting(Path("results"), "In which the folder is.")


def report(folders: Sequence[Path], compare: Sequence[str] = (), **flags: Any) -> Path:
    """Write the page of a set of runs, which is returned; UsageError if there is none, or groups cannot be paired.

    Args:
        folders: Log folders of runs, or folders of such.
        compare: Groups, "optimizer=sgd lr=0.05" each: the first against each other one, by pairs of runs with the same
            seed.
        flags: Of `ReportSettings`.
    """
    from experiments.tables import write_page  # takes pandas, SciPy and Matplotlib

    chosen = ReportSettings(**flags)
    for path in folders:
        if not path.is_dir():
            raise UsageError(f"{path}: no such folder")
    return write_page(folders, chosen.results_dir, chosen.name, chosen.seeds, compare, chosen.baseline)


def parser() -> Parser:
    parser = Parser("Tables, curves and comparisons of runs.", usage="%(prog)s FOLDER [FOLDER ...] [flags]")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="Log folders of runs, or of sweeps.")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="GROUP",
        help="Such as optimizer=sgd optimizer=adam: the first group against each other one.",
    )
    parser.add_settings(ReportSettings)
    return parser


def main() -> None:
    print(report(**vars(parser().parse_args())))


if __name__ == "__main__":
    sys.exit(exit_status(main))
