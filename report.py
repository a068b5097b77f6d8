"""Write tables, curves and comparisons of runs, from their log folders.

python report.py logs/coursework
python report.py logs/optimizers --compare optimizer=sgd optimizer=adam optimizer=muon
python report.py logs/preprocessing --baseline "denoise=none segment=none normalize=dataset"

Writes results/<name>/: README.md, its tables as CSV and LaTeX, runs.csv (a row a run), curves.csv (a row an epoch) and
pictures, of searches Optuna's too. Runs whose logs are on another machine keep what runs.csv and curves.csv have of
them. Two files in that folder come from elsewhere: notes.md becomes part of the page, and reference.csv has further
columns of the table, by the flags that it names; without one there, that of the project's own results/<name>/ is taken.
Its `best_epoch` and `accuracy` are the coursework report's, and the page says how far ours agree with it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.cli import Parser, run_program
from core.errors import UsageError
from experiments.config import ReportSettings


def report(folders: Sequence[Path], compare: Sequence[str] = (), **flags: Any) -> Path:
    """Write the page of a set of runs, which is returned; UsageError if there is none, or groups cannot be paired.

    Args:
        folders: Log folders of runs, or folders of such.
        compare: Groups, "optimizer=sgd lr=0.05" each: the first against each other one, by pairs of runs with the same
            seed.
        flags: Of `ReportSettings`.
    """
    from experiments.pages import write_page  # takes pandas, SciPy and Matplotlib

    chosen = ReportSettings(**flags)
    for path in folders:
        if not path.is_dir():
            raise UsageError(f"{path}: no such folder")
    return write_page(folders, compare, chosen)


def make_parser() -> Parser:
    parser = Parser(__doc__, usage="%(prog)s FOLDER [FOLDER ...] [flags]")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="Log folders of runs, or of sweeps.")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="GROUP",
        help="Groups of runs, such as optimizer=sgd optimizer=adam: the first is compared with each of the others.",
    )
    parser.add_settings(ReportSettings)
    return parser


def main() -> None:
    print(report(**vars(make_parser().parse_args())))


if __name__ == "__main__":
    sys.exit(run_program(main))
