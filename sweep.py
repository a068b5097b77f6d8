"""Many runs of train.py, several at a time: grids, repeats over seeds, searches over ranges of its flags.

python sweep.py --config recipes/sweeps/coursework.yaml
python sweep.py --recipe coursework --grid "optimizer=sgd lr=0.005,0.001 batch_size=128,64,32"
python sweep.py --name width --grid "optimizer=sgd,adam width=1,2,3 seed=0,1,2"
python sweep.py --name lr --search "optimizer=adam lr=0.0005..0.01" --trials 12

Each cell is a trial of an Optuna study, enqueued once. The same command goes on with a sweep that was stopped or
killed: finished cells are not run again, and a running one goes on from its last whole epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import mean
from types import FrameType
from typing import Any, NoReturn

import optuna
import psutil
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from tqdm import tqdm

import train
from cifar10.download import prepare
from cifar10.errors import UsageError
from cifar10.storage import write_bytes
from experiments.grid import DEFAULTS, Cell, Plan, ends, identity
from training.cli import Parser, RecipeFile, Stopped, exit_status

RUN_MEMORY = 1.5e9  # bytes; results/throughput.md has the peak of a run
HEARTBEAT, GRACE = 20, 90  # seconds; a machine that is silent for longer has died, and others take over its cells
POLL = 1.0  # seconds
# Reasons of trials that did not fail.
STOPPED = "stopped"
NOT_ASKED = "not among the cells of this command"
BY_SIGNAL = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}  # exit statuses


class Failed(RuntimeError):
    """A run, or a sweep, ended without a result."""


def sweep(
    recipe: str | None = None,
    base: str = "",
    grid: Sequence[str] = (),
    search: Sequence[str] = (),
    trials: int = 20,
    best_per: str | None = None,
    repeat: str | None = None,
    name: str | None = None,
    retry: bool = False,
    workers: int | None = None,
    storage: str | None = None,
    data_dir: Path = Path("data"),
    log_dir: Path = Path("logs"),
    checkpoint_dir: Path = Path("checkpoints"),
    results_dir: Path = Path("results"),
) -> bool:
    """Train all cells that are not yet finished.

    Args:
        recipe: YAML file of flags for all cells; a bare name is looked for in recipes/.
        base: Flags for all cells on top of it, "epochs=5 pictures=false".
        grid: Cells: "lr=0.1,0.05 seed=0,1" is four; without commas a text is one.
        search: Spaces, "optimizer=sgd,adam lr=0.001..0.1", searched by TPE for validation accuracy. Ranges above 0 are
            searched on a logarithmic scale.
        trials: Cells of each search.
        best_per: A flag. When all cells are done, the best for each of its values, by validation accuracy, ...
        repeat: ... is run again with the cells of this grid, such as "seed=1,2,3".
        name: Of the sweep and its folders; null takes the recipe's.
        retry: Cells that failed are run again.
        workers: Runs at a time; null fills cores and memory. Each gets its share of the cores as threads.
        storage: URL of a database, "postgresql+psycopg://user@host/name", where machines that get the same command
            share the cells; null keeps the study in the log folder.
        data_dir: As in train.py.
        log_dir: As in train.py; the sweep has a folder in it.
        checkpoint_dir: As in train.py; the sweep has a folder in it.
        results_dir: Cells that are in the sweep's cells.csv in here are finished too.

    Returns:
        Whether all cells have a result.

    Raises:
        UsageError: A flag is wrong, or another process is at this sweep.
        DataError: No source gives the data set.
        Stopped: Ctrl-C or SIGTERM.
    """
    plan = Plan(recipe, base, name, data_dir, log_dir, checkpoint_dir, results_dir)
    cells = [cell for text in grid for cell in plan.grid(text)]
    cells += [cell for text in search for cell in plan.search(text, trials)]
    if not cells:
        raise UsageError("nothing to run: --grid or --search says what")
    if (best_per is None) != (repeat is None) or best_per not in {None, *DEFAULTS}:
        raise UsageError("--best_per FLAG --repeat GRID: only together, and for a flag of train.py")
    plan.grid(repeat or "")  # refused now rather than after hours
    plan.finished()  # a damaged table too
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: must be above 0")
    prepare(data_dir)
    with stop_on_signal(), open_study(plan, storage) as study:
        engine = Engine(study, plan, workers or min(len(cells), default_workers()))
        engine.run(cells, retry)
        if best_per and repeat:
            cells += [cell for best in engine.best(cells, best_per) for cell in plan.grid(repeat, best)]
            engine.run(cells, retry)
        return all(trial.state == TrialState.COMPLETE for trial in engine.trials(cells).values())


class Engine:
    """Runs cells in processes of their own, and keeps the study."""

    def __init__(self, study: Study, plan: Plan, workers: int) -> None:
        self.study, self.plan, self.workers = study, plan, workers
        self.asked: set[str] = set()  # keys
        self.children: set[BaseProcess] = set()
        self.stopping = threading.Event()
        self.error: Exception | None = None  # that ended a worker

    def run(self, cells: list[Cell], retry: bool) -> None:
        """Enqueue what the study does not have yet, and work until nothing is left to do, here or elsewhere."""
        self.asked = {cell.key for cell in cells}
        trials = self.trials(cells)
        for cell in cells:
            trial = trials.get(cell.key)
            if trial is None:
                attributes = {"key": cell.key, "assigned": cell.assigned, "space": cell.space}
                self.study.enqueue_trial({}, user_attrs=attributes)
            elif trial.state == TrialState.FAIL and (retry or trial.user_attrs.get("reason") == NOT_ASKED):
                again(self.study, trial)
        threads = [threading.Thread(target=self._work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            show(self, cells, threads)
        finally:
            self.stopping.set()
            for child in list(self.children):
                child.terminate()  # it stops after its running step; its last whole epoch is on disk
            for thread in threads:
                thread.join()
            self.stopping.clear()
        if self.error:
            raise self.error

    def trials(self, cells: list[Cell]) -> dict[str, FrozenTrial]:
        """By the key of the cell, the trial that counts: the one with a result, else the last."""
        found: dict[str, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            key = trial.user_attrs.get("key")
            finished = key in found and found[key].state == TrialState.COMPLETE
            if key and not finished and trial.state != TrialState.PRUNED:
                found[key] = trial
        return {cell.key: found[cell.key] for cell in cells if cell.key in found}

    def best(self, cells: list[Cell], flag: str) -> list[dict[str, str]]:
        """For each value of `flag`, what is assigned to the cell with the highest validation accuracy."""
        best: dict[Any, tuple[float, dict[str, str]]] = {}
        for trial in self.trials(cells).values():
            if trial.state == TrialState.COMPLETE:
                values = assigned(trial)
                value, accuracy = self.plan.flags(values)[flag], trial.user_attrs["result"]["val_acc"]
                if accuracy is None:
                    raise UsageError("--best_per: chooses by validation, so it needs --val_size above 0")
                if value not in best or accuracy > best[value][0]:
                    best[value] = accuracy, values
        return [values for accuracy, values in best.values()]

    def _work(self) -> None:
        try:
            self._run_cells()
        except Exception as error:  # the study cannot be written, say; the main thread tells
            self.error = error
            self.stopping.set()

    def _run_cells(self) -> None:
        while not self.stopping.is_set():
            states = {trial.state for trial in self.study.get_trials(deepcopy=False)}
            if TrialState.WAITING in states:
                self.study.optimize(self._objective, n_trials=1, catch=Failed, callbacks=[enqueue_stopped])
            elif TrialState.RUNNING in states:  # another worker's; if that dies, its cell comes back
                optuna.storages.fail_stale_trials(self.study)
                self.stopping.wait(POLL)
            else:
                return

    def _objective(self, trial: Trial) -> float:
        """One run; its value is the accuracy that chose the best epoch."""
        attributes = trial.user_attrs
        if not attributes:
            raise optuna.TrialPruned  # another worker took the last cell in the same moment
        earlier = self.study.get_trials(deepcopy=False)[: trial.number]
        if any(
            other.user_attrs.get("key") == attributes["key"] and other.state != TrialState.FAIL for other in earlier
        ):
            raise optuna.TrialPruned  # two machines enqueued it in the same moment
        trial.set_user_attr("chosen", {flag: suggest(trial, flag, text) for flag, text in attributes["space"].items()})
        try:
            if attributes["key"] not in self.asked:
                raise Failed(NOT_ASKED)
            result = self._result(trial.number, assigned(trial))
        except Failed as failed:
            trial.set_user_attr("reason", str(failed))
            raise
        trial.set_user_attr("result", result)
        return result["test_acc"] if result["val_acc"] is None else result["val_acc"]

    def _result(self, number: int, values: dict[str, str]) -> dict[str, Any]:
        """The result of a run, which is trained only if, and as far as, that was not done before."""
        flags = self.plan.flags(values)
        if result := self.plan.finished().get(identity(flags)):
            return result
        if folder := self.plan.unfinished(flags):
            arguments = [f"--resume={folder}", f"--data_dir={self.plan.data_dir}", f"--log_dir={self.plan.log_dir}"]
        else:
            threads = max(1, (os.cpu_count() or 1) // self.workers)
            arguments = self.plan.arguments(values, threads)
        output = self.plan.log_dir / "output" / f"{number}.txt"
        output.parent.mkdir(exist_ok=True)
        child = multiprocessing.get_context("spawn").Process(target=run_train, args=(arguments, output))
        self.children.add(child)
        if not self.stopping.is_set():
            child.start()
            child.join()
        self.children.discard(child)
        result = self.plan.finished().get(identity(flags))
        if result and child.exitcode == 0:
            return result
        if self.stopping.is_set() or child.exitcode in BY_SIGNAL:
            raise Failed(STOPPED)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        raise Failed(lines[-1] if lines else f"exit status {child.exitcode}")


def assigned(trial: Trial | FrozenTrial) -> dict[str, str]:
    """The flags of a trial's cell on top of the plan's, those that were searched too."""
    return trial.user_attrs["assigned"] | trial.user_attrs.get("chosen", {})


def suggest(trial: Trial, flag: str, text: str) -> str:
    """One of the choices "sgd,adam", or a number in a range "0.001..0.1", on a logarithmic scale if it is above 0."""
    if ".." not in text:
        return trial.suggest_categorical(flag, text.split(","))
    low, high = map(float, ends(text))
    if isinstance(DEFAULTS[flag], int):
        return str(trial.suggest_int(flag, int(low), int(high), log=low >= 1))
    return f"{trial.suggest_float(flag, low, high, log=low > 0):.3g}"


def again(study: Study, trial: FrozenTrial) -> None:
    """Enqueue a failed trial anew, with the parameters that it had."""
    attributes = {name: value for name, value in trial.user_attrs.items() if name != "reason"}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=trial.system_attrs,
        )
    )


def enqueue_stopped(study: Study, trial: FrozenTrial) -> None:
    if trial.state == TrialState.FAIL and trial.user_attrs.get("reason") == STOPPED:
        again(study, trial)


def run_train(arguments: list[str], output: Path) -> NoReturn:
    """train.py in this process, its output in a file; ends when the parent does."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent
        parent.join()
        os._exit(1)

    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = ["train.py", *arguments]
    sys.exit(exit_status(train.main))


@contextmanager
def open_study(plan: Plan, storage: str | None) -> Iterator[Study]:
    """The study of a sweep, which without a database one process at a time can have.

    Raises:
        UsageError: Another process has it, or the database cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    try:
        with nullcontext() if storage else FileLock(plan.log_dir / "sweep.lock", timeout=0):
            study = optuna.create_study(
                study_name=plan.name,
                storage=database(storage) if storage else journal(plan.log_dir / "study.log"),
                sampler=optuna.samplers.TPESampler(seed=0, constant_liar=True),
                direction="maximize",
                load_if_exists=True,
            )
            if not storage:  # a journal has no heartbeat, but whoever ran these is gone
                for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    again(study, study.tell(trial.number, state=TrialState.FAIL))
            yield study
    except Timeout as error:
        raise UsageError(f"{plan.log_dir}: another sweep.py is at it") from error


def journal(path: Path) -> optuna.storages.JournalStorage:
    """A study in a file, without what a process that was killed while it wrote has left."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        write_bytes(path, text[: text.rfind(b"\n") + 1])  # behind half a line, Optuna could read nothing
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


def database(url: str) -> optuna.storages.RDBStorage:
    for attempt in range(3):
        try:
            return optuna.storages.RDBStorage(
                url, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=again
            )
        except (IntegrityError, ProgrammingError) as error:
            if attempt == 2:
                raise UsageError(f"--storage: {str(error).splitlines()[0]}") from error
            time.sleep(POLL)  # another machine made the tables in the same moment
        except (SQLAlchemyError, ImportError) as error:
            raise UsageError(f"--storage: {str(error).splitlines()[0]}") from error
    raise AssertionError


def default_workers() -> int:
    """As many as cores and memory hold: two runs of one thread are faster than one of two after the other."""
    cores = psutil.cpu_count(logical=False) or 1
    return max(1, min(cores, int(psutil.virtual_memory().available / RUN_MEMORY)))


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `Stopped`; a second signal acts at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number, advice="the same command goes on")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def show(engine: Engine, cells: list[Cell], threads: list[threading.Thread]) -> None:
    """Print a line for each cell that ends, and on a terminal how far the sweep is, until the threads end."""
    shown: set[int] = set()
    total, best = len({cell.key for cell in cells}), 0.0
    with tqdm(total=total, bar_format="{desc}", leave=False, disable=None) as bar:
        working = True
        while working:
            # Asked first, so that the last line is not missed.
            working = any(thread.is_alive() for thread in threads) and not engine.stopping.is_set()
            trials = engine.trials(cells).values()
            done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.FAIL)]
            for trial in done:
                if trial.number not in shown and trial.user_attrs.get("reason") != STOPPED:
                    shown.add(trial.number)
                    mark = ""
                    if trial.value is not None and trial.value > best:
                        best, mark = trial.value, "  best so far"
                    bar.write(f"{len(shown):>{len(str(total))}}/{total}  {outcome(trial)}{mark}", file=sys.stdout)
            seconds = [trial.user_attrs["result"]["seconds"] for trial in done if trial.state == TrialState.COMPLETE]
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            left = tqdm.format_interval(mean(seconds) * (total - len(done)) / engine.workers) if seconds else "?"
            bar.set_description_str(f"{len(done)} of {total} cells, {running} running, best {best:.2%}, {left} left")
            if working:
                time.sleep(POLL)


def outcome(trial: FrozenTrial) -> str:
    """A cell's flags, and its accuracies or the reason why it has none."""
    cell = " ".join(f"{flag}={value}" for flag, value in assigned(trial).items())
    if trial.state == TrialState.FAIL:
        return f"{cell}  failed: {trial.user_attrs.get('reason')}"
    result = trial.user_attrs["result"]
    parts = [cell, "" if result["best_epoch"] is None else f"best epoch {result['best_epoch']}"]
    if result.get("select_on") == "test":
        parts.append(f"test {result['test_acc']:.2%}, chosen on it")
    else:
        scores = {name: result[f"{name}_acc"] for name in ("val", "test")}
        parts += [f"{name} {accuracy:.2%}" for name, accuracy in scores.items() if accuracy is not None]
    return "  ".join([*filter(None, parts), f"{result['seconds']:.0f} s"])


def parser() -> Parser:
    parser = Parser(description="Many runs of train.py.", usage="%(prog)s [flags]")
    parser.add_argument("--grid", nargs="+", default=[], metavar="CELLS", help='"lr=0.1,0.05 seed=0,1" is four cells.')
    parser.add_argument("--search", nargs="+", default=[], metavar="SPACE", help='"lr=0.001..0.1 optimizer=sgd,adam".')
    parser.add_argument("--retry", action="store_true", help="Cells that failed are run again.")
    parser.add_function_arguments(sweep, skip={"grid", "search", "retry"})
    parser.add_argument(
        "--config", action=RecipeFile, help="YAML file of these flags, such as those in recipes/sweeps/."
    )
    return parser


def main() -> None:
    flags = parser().parse_args().as_dict()
    del flags["config"]
    complete = sweep(**flags)
    name = Plan(flags["recipe"], "", flags["name"], *[Path()] * 4).name
    print(f"next  {shlex.join(['python', 'report.py', str(flags['log_dir'] / name)])}")
    if not complete:
        sys.exit("sweep.py: some cells failed; --retry runs them again")


if __name__ == "__main__":
    sys.exit(exit_status(main))
