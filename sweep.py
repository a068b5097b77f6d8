"""Many runs of train.py, several at a time: grids, repeats over seeds, searches over ranges of its flags.

python sweep.py --config recipes/sweeps/coursework.yaml
python sweep.py --config recipes/sweeps/coursework.yaml --reuse results/coursework/cells.csv
python sweep.py --recipe coursework --grid "optimizer=sgd lr=0.005,0.001 batch_size=128,64,32"
python sweep.py --name width --grid "optimizer=sgd,adam width=1,2,3 seed=0,1,2"
python sweep.py --name lr --search "optimizer=adam lr=0.0005..0.01" --trials 12

Each cell is a trial of an Optuna study, enqueued once. The same command goes on with a sweep that was stopped or
killed: finished cells are not run again, and a running one goes on from its last whole epoch.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from cifar10.download import prepare
from cifar10.errors import UsageError
from cifar10.settings import Settings, setting
from experiments.grid import Cell, Plan
from experiments.study import Engine, default_workers, open_study
from training.cli import Parser, exit_status
from training.config import SETTINGS
from training.shell import command_line, door
from training.signals import StopSignals


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """Sweep: which runs."""

    recipe: str | None = setting(None, "YAML file of flags for all runs; a bare name is looked for in recipes/.")
    base: str = setting("", 'Flags for all runs on top of it, "epochs=5 pictures=false".')
    trials: int = setting(20, "Runs of each search.", at_least=1, at_most=100_000)
    best_per: str | None = setting(
        None, "A flag. When all runs are done, the best for each of its values, by validation accuracy, ..."
    )
    repeat: str | None = setting(None, '... is run again with the runs of this grid, such as "seed=1,2,3".')
    name: str | None = setting(None, "Of the sweep and its folders; null takes the recipe's.")
    reuse: Path | None = setting(
        None, "A cells.csv, such as those in results/: runs that it has a result of are not run again."
    )
    retry: bool = setting(False, "Runs that failed are run again.")
    workers: int | None = setting(
        None,
        "Runs at a time; null fills cores and memory. Each gets its share of the cores as threads.",
        at_least=1,
        at_most=4096,
    )
    storage: str | None = setting(
        None,
        "URL of a database, postgresql+psycopg://user@host/name, where machines that get the same command share the "
        "runs; null keeps the study in the log folder.",
    )
    data_dir: Path = setting(Path("data"), "As in train.py.")
    log_dir: Path = setting(Path("logs"), "As in train.py; the sweep has a folder in it.")
    checkpoint_dir: Path = setting(Path("checkpoints"), "As in train.py; the sweep has a folder in it.")


def sweep(grid: Sequence[str] = (), search: Sequence[str] = (), **flags: Any) -> bool:
    """Train all cells that are not yet finished; whether all have a result then.

    Args:
        grid: Cells: "lr=0.1,0.05 seed=0,1" is four; without commas a text is one.
        search: Spaces, "optimizer=sgd,adam lr=0.001..0.1", searched by TPE for validation accuracy. Ranges above 0 are
            searched on a logarithmic scale.
        flags: Of `SweepSettings`.

    Raises:
        UsageError: A flag is wrong, or another process is at this sweep.
        DataError: No source gives the data set.
        Stopped: Ctrl-C or SIGTERM.
    """
    chosen = SweepSettings(**flags)
    plan = plan_of(chosen)
    cells = [cell for text in grid for cell in plan.grid(text)]
    cells += [cell for text in search for cell in plan.search(text, chosen.trials)]
    if not cells:
        raise UsageError("nothing to run: --grid or --search says what")
    check_repeat(chosen, plan, cells)
    prepare(chosen.data_dir)
    with StopSignals(advice="the same command goes on"), open_study(plan, chosen.storage) as study:
        engine = Engine(study, plan, chosen.workers or min(len(cells), default_workers()))
        engine.run(cells, chosen.retry)
        if chosen.best_per and chosen.repeat:
            best = engine.best(cells, chosen.best_per)
            cells += [cell for assigned in best for cell in plan.grid(chosen.repeat, assigned)]
            engine.run(cells, chosen.retry)
        return all(trial.state == TrialState.COMPLETE for trial in engine.trials(cells).values())


def plan_of(chosen: SweepSettings) -> Plan:
    folders = (chosen.data_dir, chosen.log_dir, chosen.checkpoint_dir)
    return Plan(chosen.recipe, chosen.base, chosen.name, *folders, chosen.reuse)


def check_repeat(chosen: SweepSettings, plan: Plan, cells: Sequence[Cell]) -> None:
    """Raise UsageError now, rather than after hours, if the best cells cannot be found or repeated."""
    if (chosen.best_per is None) != (chosen.repeat is None) or chosen.best_per not in {None, *SETTINGS}:
        raise UsageError("--best_per FLAG --repeat GRID: only together, and for a flag of train.py")
    if chosen.best_per and not all(plan.config(cell.assigned).val_size for cell in cells):
        raise UsageError("--best_per: chooses by validation, so it needs --val_size above 0")
    plan.grid(chosen.repeat or "")


def parser() -> Parser:
    parser = Parser("Many runs of train.py.", usage="%(prog)s [flags]")
    parser.add_config("YAML file of these flags, such as those in recipes/sweeps/.")
    parser.add_argument("--grid", nargs="+", default=[], metavar="CELLS", help='"lr=0.1,0.05 seed=0,1" is four cells.')
    parser.add_argument("--search", nargs="+", default=[], metavar="SPACE", help='"lr=0.001..0.1 optimizer=sgd,adam".')
    parser.add_settings(SweepSettings)
    return parser


def main() -> None:
    flags = vars(parser().parse_args())
    complete = sweep(**flags)
    chosen = SweepSettings(**{name: value for name, value in flags.items() if name not in ("grid", "search")})
    print(f"next  {command_line('python', door('report.py'), plan_of(chosen).log_dir)}")
    if not complete:
        sys.exit("sweep.py: some cells failed; --retry runs them again")


if __name__ == "__main__":
    sys.exit(exit_status(main))
