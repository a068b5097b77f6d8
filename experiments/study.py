"""The engine of sweeps: runs of train.py in processes of their own, as trials of an Optuna study.

Each run is a trial, enqueued once. Workers are threads, each of which waits for one process at a time; a study lies in
a journal in the log folder, or in a database that several machines share.
"""

import hashlib
import json
import multiprocessing
import os
import runpy
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import optuna
import psutil
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from tqdm import tqdm

from core.cores import cores
from core.errors import UsageError
from core.extras import require_extra
from core.files import write_bytes
from core.locks import hold_lock
from core.settings import get_alternatives, get_types
from experiments.grid import PlannedRun, Sweep, parse_range
from training.config import RunConfig

JOURNAL = "study.log"  # in the sweep's log folder
TRAIN = Path(__file__).parent.parent / "train.py"
RUN_MEMORY = 1.5e9  # bytes; results/throughput/ has the peak of a run
HEARTBEAT, GRACE = 20, 90  # seconds; a machine that is silent for longer has died, and others take over its runs
POLL = 1.0  # seconds
# On Linux, runs are forked from a process that has imported PyTorch and Lightning once and computed nothing.
CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
CONTEXT.set_forkserver_preload(["pytorch_lightning", "training.run", "experiments.study"])
STOPPED = "stopped"  # the reason of a trial that did not fail
BY_SIGNAL = {128 + SIGINT, 128 + SIGTERM, -SIGINT, -SIGTERM}  # exit statuses


class Failed(RuntimeError):
    """A run, or a sweep, ended without a result."""


class Engine:
    """Trains the runs of a sweep in processes of their own, as trials of a study."""

    def __init__(self, study: Study, sweep: Sweep, workers: int) -> None:
        self.study, self.sweep, self.workers = study, sweep, workers
        self.known: dict[str, FrozenTrial] = {}  # by key, of runs that need none in the study
        self.children: set[BaseProcess] = set()
        self.starting = threading.Lock()  # of a child
        self.stopping = threading.Event()

    def run(self, planned: list[PlannedRun], retry: bool) -> None:
        """Enqueue what has no result and is not in the study yet, and work until nothing is left to do, here or on
        another machine.
        """
        finished = self.sweep.read_finished()
        for run in planned:
            if result := finished.get(run.key):
                attributes: dict[str, Any] = {"assigned": run.assigned, "result": result}
                self.known[run.key] = create_trial(value=get_score(result), user_attrs=attributes)
        trials = self.trials(planned)
        for run in planned:
            if (trial := trials.get(run.key)) is None:
                attributes = {"key": run.key, "assigned": run.assigned, "space": run.space}
                self.study.enqueue_trial({}, user_attrs=attributes)
            elif trial.state == TrialState.FAIL and retry:
                enqueue_again(self.study, trial)
        with ThreadPoolExecutor(self.workers) as pool:
            workers = [pool.submit(self._work) for _ in range(self.workers)]
            try:
                show_progress(self, planned, workers)
            finally:
                self.stopping.set()
                with self.starting:  # a child that is being started can be stopped after that
                    children = list(self.children)
                for child in children:
                    child.terminate()  # its last whole epoch is on disk
        self.stopping.clear()
        for worker in workers:
            worker.result()  # raises what ended it: the study cannot be written, say

    def trials(self, planned: list[PlannedRun]) -> dict[str, FrozenTrial]:
        """Return, by the key of the run, the trial that counts: one with a result, else the last."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.PRUNED]
        trials.sort(key=lambda trial: trial.state == TrialState.COMPLETE)
        found = {trial.user_attrs.get("key"): trial for trial in trials} | self.known
        return {run.key: found[run.key] for run in planned if run.key in found}

    def best(self, planned: list[PlannedRun], flag: str) -> list[dict[str, str]]:
        """Return, for each value of `flag`, what is assigned to the run with the highest validation accuracy."""
        finished = [trial for trial in self.trials(planned).values() if trial.state == TrialState.COMPLETE]
        best: dict[Any, dict[str, str]] = {}
        for trial in sorted(finished, key=lambda trial: trial.value or 0, reverse=True):
            best.setdefault(getattr(self.sweep.make_config(assigned(trial)), flag), assigned(trial))
        return list(best.values())

    def _work(self) -> None:
        while not self.stopping.is_set():
            states = {trial.state for trial in self.study.get_trials(deepcopy=False)}
            if TrialState.WAITING in states:
                self.study.optimize(self._objective, n_trials=1, catch=Failed, callbacks=[enqueue_stopped])
            elif TrialState.RUNNING in states:  # another worker's; if that dies, its run comes back
                optuna.storages.fail_stale_trials(self.study)
                self.stopping.wait(POLL)
            else:
                return

    def _objective(self, trial: Trial) -> float:
        """Do one run; its value is the accuracy that chose the best epoch."""
        attributes = trial.user_attrs
        if not attributes:
            raise optuna.TrialPruned  # another worker took the last run in the same moment
        earlier = self.study.get_trials(deepcopy=False)[: trial.number]
        if any(
            other.user_attrs.get("key") == attributes["key"] and other.state != TrialState.FAIL for other in earlier
        ):
            raise optuna.TrialPruned  # two machines enqueued it in the same moment
        # Draws are a function of the trial's number and of what is finished: a search that was stopped and goes on
        # proposes what one that was not would.
        self.study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        trial.set_user_attr("reason", None)  # of the trial that this one is again
        trial.set_user_attr(
            "chosen", {flag: suggest_value(trial, flag, text) for flag, text in attributes["space"].items()}
        )
        try:
            result = self._result(trial.number, assigned(trial))
        except Failed as failed:
            trial.set_user_attr("reason", str(failed))
            raise
        trial.set_user_attr("result", result)
        return get_score(result)

    def _result(self, number: int, values: dict[str, str]) -> dict[str, Any]:
        """Return the result of a run, which is trained only if, and as far as, that was not done before."""
        try:
            config = self.sweep.make_config(values)
        except UsageError as error:  # of values that contradict each other, which a search may draw
            raise Failed(str(error)) from error
        if result := self.sweep.read_finished().get(config.identity()):
            return result
        if folder := self.sweep.find_unfinished(config):
            arguments = [f"--resume={folder}", f"--data_dir={self.sweep.data_dir}", f"--log_dir={self.sweep.log_dir}"]
        else:
            arguments = self.sweep.list_arguments(values, threads=max(1, cores() // self.workers))
        output = self.sweep.log_dir / "output" / f"{number}.txt"
        output.parent.mkdir(exist_ok=True)
        child = CONTEXT.Process(target=run_train, args=(arguments, output))
        with self.starting:
            if self.stopping.is_set():
                raise Failed(STOPPED)
            child.start()
            self.children.add(child)
        child.join()
        self.children.discard(child)
        result = self.sweep.read_finished().get(config.identity())
        if result and child.exitcode == 0:
            return result
        if self.stopping.is_set() or child.exitcode in BY_SIGNAL:
            raise Failed(STOPPED)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        raise Failed(lines[-1] if lines else f"exit status {child.exitcode}")


def assigned(trial: Trial | FrozenTrial) -> dict[str, str]:
    """Return the flags of a trial's run on top of the sweep's, those that were searched too."""
    return trial.user_attrs["assigned"] | trial.user_attrs.get("chosen", {})


def suggest_value(trial: Trial, flag: str, text: str) -> str:
    """Suggest one of the choices "sgd,adam", or a number in a range "0.001..0.1", on a log scale if it is above 0."""
    if (ends := parse_range(text)) is None:
        return trial.suggest_categorical(flag, text.split(","))
    low, high = ends
    if int in get_alternatives(get_types(RunConfig)[flag]):
        return str(trial.suggest_int(flag, int(low), int(high), log=low >= 1))
    return f"{trial.suggest_float(flag, low, high, log=low > 0):.3g}"


def enqueue_again(study: Study, trial: FrozenTrial) -> None:
    """Enqueue a failed trial anew, with the parameters and attributes that it had."""
    optuna.storages.RetryHeartbeatStaleTrialCallback()(study, trial)


def enqueue_stopped(study: Study, trial: FrozenTrial) -> None:
    if trial.state == TrialState.FAIL and trial.user_attrs.get("reason") == STOPPED:
        enqueue_again(study, trial)


def run_train(arguments: list[str], output: Path) -> None:
    """Run train.py as a script in this process, its output in a file; ends when the parent does."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent
        parent.join()
        os._exit(1)

    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own, between processes, is left behind when this one is stopped
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


@contextmanager
def open_study(sweep: Sweep, planned: Sequence[PlannedRun], storage: str | None) -> Iterator[Study]:
    """Open the study of these runs, which without a database one process at a time can have.

    Commands with other runs have another study, so that sweeps of one name can share a database.

    Raises:
        UsageError: Another process has the study, the journal is damaged, or the database cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    sweep.log_dir.mkdir(parents=True, exist_ok=True)
    keys = {run.key.rpartition(" ")[0] if run.space else run.key for run in planned}  # of a search, without the number
    name = f"{sweep.name} {hashlib.sha256(json.dumps(sorted(keys)).encode()).hexdigest()[:12]}"
    lock = hold_lock(sweep.log_dir / "sweep.lock", f"{sweep.log_dir}: another sweep.py is at it")
    with nullcontext() if storage else lock:
        opened = open_database(storage) if storage else open_journal(sweep.log_dir / JOURNAL)
        study = optuna.create_study(study_name=name, storage=opened, direction="maximize", load_if_exists=True)
        if not storage:  # a journal has no heartbeat, but whoever ran these is gone
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                enqueue_again(study, study.tell(trial.number, state=TrialState.FAIL))
        yield study


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """Open studies in a file, without what a process that was killed while it wrote has left; UsageError if it is
    damaged otherwise.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if content != whole:
        write_bytes(path, whole)  # behind half a line, Optuna could read nothing
    try:
        for line in whole.splitlines():
            json.loads(line)  # Optuna finds a damaged last line only when it has written behind it
        # Between processes, the lock of the sweep guards its journal.
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), threading.Lock()))  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: damaged ({error}); delete it: finished runs are not repeated, but failed ones run again, and a "
            "search may try other values"
        ) from error


class Database(optuna.storages.RDBStorage):
    """A database in which one worker of this process at a time takes a trial: two could take the same one in SQLite."""

    taking = threading.Lock()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with self.taking:
            return super().set_trial_state_values(trial_id, state, values)


def open_database(url: str, tries: int = 3) -> Database:
    if url.startswith("postgresql+psycopg:"):
        require_extra("--storage with PostgreSQL", "psycopg")
    try:
        return Database(
            url, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=enqueue_again
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        if tries == 1 or not isinstance(error, IntegrityError | ProgrammingError):
            raise UsageError(f"storage: {str(error).splitlines()[0]}") from error
    time.sleep(POLL)  # another machine made the tables in the same moment
    return open_database(url, tries - 1)


def count_workers() -> int:
    """Return how many runs cores and memory hold: two runs of one thread are faster than one of two after the other."""
    physical = min(psutil.cpu_count(logical=False) or 1, cores())
    return max(1, min(physical, int(psutil.virtual_memory().available / RUN_MEMORY)))


def show_progress(engine: Engine, planned: list[PlannedRun], workers: list[Future[None]]) -> None:
    """Print a line for each run that ends, until all workers end or one fails."""
    shown: set[str] = set()
    total, working = len({run.key for run in planned}), True
    while working:
        done, left = wait(workers, POLL, FIRST_EXCEPTION)
        working = bool(left) and not any(worker.exception() for worker in done)
        for key, trial in engine.trials(planned).items():
            if key not in shown and has_ended(trial):
                shown.add(key)
                print(f"{len(shown):>{len(str(total))}}/{total}  {describe_trial(trial)}", flush=True)


def has_ended(trial: FrozenTrial) -> bool:
    """Return whether a trial has a result, or a reason why it will have none."""
    failed = trial.state == TrialState.FAIL and trial.user_attrs.get("reason") != STOPPED
    return failed or trial.state == TrialState.COMPLETE


def get_score(result: dict[str, Any]) -> float:
    """Return the accuracy that chose the best epoch, or that of the test if none was chosen."""
    return result["test_acc"] if result["val_acc"] is None else result["val_acc"]


def describe_trial(trial: FrozenTrial) -> str:
    """Write a run's flags, and its accuracies or the reason why it has none."""
    run = " ".join(f"{flag}={value}" for flag, value in assigned(trial).items())
    if trial.state == TrialState.FAIL:
        return f"{run}  failed: {trial.user_attrs.get('reason')}"
    result = trial.user_attrs["result"]
    parts = [run, "" if result["best_epoch"] is None else f"best epoch {result['best_epoch']}"]
    scores = {result["select_on"]: result["val_acc"], "test": result["test_acc"]}
    parts += [f"{name} {accuracy:.2%}" for name, accuracy in scores.items() if accuracy is not None]
    parts.append(f"from {result['reused']}" if "reused" in result else f"{result['seconds']:.0f} s")
    return "  ".join(filter(None, parts))
