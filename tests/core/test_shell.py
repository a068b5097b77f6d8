"""Lines to paste: through this system's shell they come back as the words that they were, also in other folders."""

import json
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest

import sweep
import train
from benchmarks import page
from conftest import ROOT
from core import shell
from core.shell import format_command
from experiments import pages
from models.checkpoint import LAST
from training import lr_finder
from training.checkpoints import StopOnSignal
from training.files import RunResult

SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"
# Windows allows no double quote in a name, and has no form for $, % and the backtick that both its shells read.
NAMES = ["it's a (ö) & folder;", "[x] {a,b} #1 ~ ^ 猫", "plain-ö_1"]
NAMES += [] if sys.platform == "win32" else ['it\'s a "ö" folder', "$HOME `pwd` 100% \\ !x", "two\nlines", "*"]


def pasted(line: str) -> list[str]:
    """The arguments that a program gets by a line in whose place it is pasted: all words but the first."""
    _, _, arguments = line.partition(" ")
    line = f"{format_command(sys.executable, '-X', 'utf8', '-c', SHOW)} {arguments}"
    done = subprocess.run(line, shell=True, capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


def test_words_come_back_from_the_shell() -> None:
    words = [*NAMES, "", "--lr=0.001..0.1", "optimizer=sgd,adam lr=0.1"]
    assert pasted(format_command("program", *words)) == words


@pytest.mark.parametrize("name", NAMES)
def test_what_the_programs_print_can_be_pasted_whatever_the_folder_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / name
    run = folder / "adam" / "version_0"
    run.mkdir(parents=True)
    (run / LAST).touch()
    stop = StopOnSignal()
    stop.folder = run
    assert pasted(stop.advise().removeprefix("go on with: ")) == ["train.py", "--resume", str(run)]

    result = RunResult(1, "val", None, None, 0.5, 1.0, 1.0, 1.0, run, Path("last.ckpt"), None)
    _, _, line = train.format_summary(result).partition("\nnext ")
    assert pasted(line.partition("\nthen open ")[0].strip()) == ["--logdir", str(folder)]

    monkeypatch.setattr(lr_finder, "find_lr", lambda config: (0.01, run))
    monkeypatch.setattr(sys, "argv", ["train.py", "--find_lr", f"--log_dir={folder}"])
    train.main()
    line = capsys.readouterr().out.split("\nnext ")[1].strip()
    assert pasted(line) == ["train.py", f"--log_dir={folder}", "--lr", "0.01"]

    monkeypatch.setattr(sweep, "sweep", lambda **flags: True)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--name", "grid_1", f"--log_dir={folder}", "--grid", "seed=0"])
    sweep.main()
    assert pasted(capsys.readouterr().out.removeprefix("next ").strip()) == ["report.py", str(folder / "grid_1")]


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_that_a_page_keeps_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Path("recipes", "sweeps", f"{name}.yaml")
    plan.parent.mkdir(parents=True)
    plan.touch()
    groups = ["optimizer=sgd lr=0.1", "optimizer=adam"]
    options = {"--name": [name], "--seeds": ["0,1"], "--compare": groups, "--baseline": ["width=1 seed=0"]}
    text = pages.list_commands([Path("logs", name)], options)
    sweeping, report = (f"python {part}".strip() for part in text.split("    python ")[1:])
    assert pasted(sweeping) == ["sweep.py", "--config", plan.as_posix()]
    flags = ["--name", name, "--seeds", "0,1", "--compare", *groups, "--baseline", "width=1 seed=0"]
    assert pasted(report) == ["report.py", f"logs/{name}", *flags]
    head = page.write_header("Title", "benchmarks.throughput", [name], 1)
    command = head.partition("- command: `")[2].partition("`\n- processor")[0]
    assert pasted(command) == ["-m", "benchmarks.throughput", name]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (PureWindowsPath("C:/Program Files/x"), r'"C:\Program Files\x"'),
        (PureWindowsPath("D:/R&D/it's"), '"D:\\R&D\\it\'s"'),
        (PureWindowsPath("//server/share (neu)/ä;b,c"), r'"\\server\share (neu)\ä;b,c"'),
        ("optimizer=sgd,adam", '"optimizer=sgd,adam"'),
        ("", '""'),
    ],
)
def test_windows_shells_get_double_quotes(word: object, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "os", SimpleNamespace(name="nt"))
    assert format_command("python", word) == f"python {line}"
