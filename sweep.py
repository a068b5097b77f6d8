"""Run train.py many times: grids, repeats over seeds, searches over ranges of flags.

python sweep.py --config recipes/sweeps/coursework.yaml
python sweep.py --config recipes/sweeps/coursework.yaml --reuse results/coursework/runs.csv
python sweep.py --recipe coursework --grid "optimizer=sgd lr=0.005,0.001 batch_size=128,64,32"
python sweep.py --name width --grid "optimizer=sgd,adam width=1,2,3 seed=0,1,2"
python sweep.py --name lr --search "optimizer=adam lr=0.0005..0.01" --trials 12

Each run is a trial of an Optuna study, enqueued once. The same command goes on with a sweep that was stopped or
killed: finished runs are not repeated, and a running one goes on from its last whole epoch.
"""

import sys
from collections.abc import Sequence
from typing import Any

from cifar10.download import prepare
from core.cli import RECIPES, Parser, run_program
from core.errors import UsageError
from core.shell import find_script, format_command
from core.signals import StopSignals
from experiments.config import SweepSettings
from experiments.grid import PlannedRun, Sweep
from experiments.study import Engine, count_workers, open_study
from training.config import SETTINGS


def sweep(grid: Sequence[str] = (), search: Sequence[str] = (), **flags: Any) -> bool:
    """Train all runs that are not yet finished; return whether all have a result then.

    Args:
        grid: Runs: "lr=0.1,0.05 seed=0,1" is four; without commas a text is one.
        search: Spaces, "optimizer=sgd,adam lr=0.001..0.1", searched by TPE for validation accuracy. Ranges above 0 are
            searched on a logarithmic scale.
        flags: Of `SweepSettings`.

    Raises:
        UsageError: A flag is wrong, or another process is at this sweep.
        DataError: No source gives the data set.
        Stopped: Ctrl-C or SIGTERM.
    """
    chosen = SweepSettings(**flags)
    defined = Sweep(chosen)
    planned = [run for text in grid for run in defined.expand_grid(text)]
    planned += [run for text in search for run in defined.expand_search(text, chosen.trials)]
    if not planned:
        raise UsageError("nothing to run: --grid or --search says what")
    check_repeat(chosen, defined, planned)
    prepare(chosen.data_dir)
    stop = StopSignals(lambda: "the same command goes on")
    with stop, open_study(defined, planned, chosen.storage) as study:
        engine = Engine(study, defined, chosen.workers or min(len(planned), count_workers()))
        engine.run(planned, chosen.retry)
        if chosen.best_per and chosen.repeat:
            best = engine.best(planned, chosen.best_per)
            repeats = [run for assigned in best for run in defined.expand_grid(chosen.repeat, assigned)]
            engine.run(repeats, chosen.retry)
            planned += repeats
        return all("result" in trial.user_attrs for trial in engine.trials(planned).values())


def check_repeat(chosen: SweepSettings, defined: Sweep, planned: Sequence[PlannedRun]) -> None:
    """Raise UsageError now, rather than after hours, if the best runs cannot be found or repeated."""
    if (chosen.best_per is None) != (chosen.repeat is None) or chosen.best_per not in {None, *SETTINGS}:
        raise UsageError("--best_per FLAG --repeat GRID: only together, and for a flag of train.py")
    if chosen.best_per and not all(defined.make_config(run.assigned).val_size for run in planned):
        raise UsageError("--best_per: chooses by validation, so it needs --val_size above 0")
    defined.expand_grid(chosen.repeat or "")


def make_parser() -> Parser:
    parser = Parser(__doc__, usage="%(prog)s [flags]")
    recipes = RECIPES / "sweeps"
    parser.add_config(SweepSettings, "YAML file of these flags, or the name of one in recipes/sweeps/.", recipes)
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="RUNS", help='Grid of runs: "lr=0.1,0.05 seed=0,1" is four.'
    )
    parser.add_argument(
        "--search", nargs="+", default=[], metavar="SPACE", help='Ranges to search, such as "lr=0.001..0.1".'
    )
    parser.add_settings(SweepSettings)
    return parser


def main() -> None:
    flags = vars(make_parser().parse_args())
    complete = sweep(**flags)
    chosen = SweepSettings(**{name: value for name, value in flags.items() if name not in ("grid", "search")})
    print(f"next  {format_command('python', find_script('report.py'), Sweep(chosen).log_dir)}")
    if not complete:
        sys.exit("sweep.py: some runs failed; --retry runs them again")


if __name__ == "__main__":
    sys.exit(run_program(main))
