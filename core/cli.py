"""The command line of all programs: settings as flags, files of flags, one-line refusals and exit statuses.

Light to import, so that a bad flag is refused at once.
"""

import argparse
import difflib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import shtab
import yaml

from core.errors import DataError, SettingError, UsageError
from core.settings import (
    Settings,
    check_format,
    check_value,
    drop_followers,
    get_alternatives,
    get_choices,
    get_fields,
    get_types,
    to_text,
)
from core.signals import Stopped

RECIPES = Path(__file__).parent.parent / "recipes"
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """argparse's parser, with one-line refusals.

    Hyphens and underscores are the same in a flag's name. An unknown flag names the one that was probably meant. A flag
    on the command line beats the file of `--config`. `--print_completion SHELL` prints a script for the shell.

    Args:
        program: The program's docstring: what it does, then examples, which end the help.
        hints: What names of other tools are here, as for `suggest`.
    """

    def __init__(self, program: str | None, hints: Mapping[str, str] | None = None, **options: Any) -> None:
        description, _, examples = (program or "").partition("\n\n")
        super().__init__(
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        self.hints = hints or {}
        self._settings: type[Settings] | None = None  # that a file of flags may hold, as well as `nargs="+"` flags
        shtab.add_argument_to(self, "--print_completion", help="Print a script that completes the flags in this shell.")

    def add_config(self, settings: type[Settings], help: str, recipes: Path = RECIPES) -> None:
        """Add `--config FILE`, a file of these settings; `recipes` is the folder in which bare names are looked for."""
        self._settings, self._recipes = settings, recipes
        self.add_argument("--config", metavar="FILE", help=help)

    def add_settings(self, kind: type[Settings], names: Iterable[str] | None = None) -> None:
        """Add a flag for each setting of a group, or for some; `parse_args` returns those that are given, as texts,
        which the group checks when it is made.
        """
        title, _, what = (kind.__doc__ or "").splitlines()[0].partition(": ")
        group = self.add_argument_group(title, what)
        for name in get_fields(kind) if names is None else names:
            each, hint = get_fields(kind)[name], get_types(kind)[name]  # type: ignore[arg-type]
            parts = get_alternatives(hint)
            listed = [str(value) for part in parts for value in get_choices(part)]
            listed += ["true", "false"] if hint is bool else []
            group.add_argument(
                f"--{name}",
                metavar=f"{{{','.join(listed)}}}" if listed else "|".join(filter(None, map(METAVARS.get, parts))),
                nargs="?" if hint is bool else None,
                const=True if hint is bool else None,
                default=argparse.SUPPRESS,
                help=f"{each.metadata['help']} (default: {to_text(each.default)})".replace("%", "%%"),
            )

    def parse_args(self, arguments: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if arguments is None else arguments)
        flags = words.index("--") if "--" in words else len(words)  # what follows are no flags
        words[:flags] = [self._check_flag(word) for word in words[:flags]]
        parsed = super().parse_args(words, namespace)
        if self._settings and parsed.config:
            values = self._read_config(parsed.config)
            self.set_defaults(**drop_followers(self._settings, values, vars(parsed)))
            parsed = super().parse_args(words, namespace)
        if self._settings:
            del parsed.config
        del parsed.print_completion
        return parsed

    def _read_config(self, name: str) -> dict[str, Any]:
        """Read the flags in a file, converted; UsageError, which names the file, if one is unknown or invalid."""
        assert self._settings
        fields, types = get_fields(self._settings), get_types(self._settings)  # type: ignore[arg-type]
        lists = [action.dest for action in self._actions if action.nargs == "+"]
        values = read_recipe(name, self._recipes)
        for flag, value in values.items():
            if flag in lists:
                values[flag] = [to_text(each) for each in (value if isinstance(value, list) else [value])]
            elif flag in fields:
                try:
                    values[flag] = check_value(fields[flag], types[flag], value)
                except SettingError as error:
                    raise UsageError(f"{name}: {error}") from error
            else:
                raise UsageError(f"{name}: {flag} is no setting{suggest(str(flag), fields, self.hints)}")
        return values

    def _check_flag(self, word: str) -> str:
        """Return a word of the command line with underscores if it is a flag; an unknown flag is refused."""
        if not word.startswith("--"):
            return word
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        known = [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]
        if name not in known:
            self.error(f"--{name}: no such flag{suggest(name, known, self.hints, '--')}")
        return f"--{name}{equals}{value}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def suggest(name: str, known: Iterable[str], hints: Mapping[str, str], prefix: str = "") -> str:
    """Return the end of a line that refuses an unknown name: which known one was meant, or why there is none.

    Args:
        hints: By names of other tools, the known one, or a sentence on why there is none.
        prefix: What precedes names in the line, such as "--".
    """
    known, hint = list(known), hints.get(name.lower())
    if hint and hint not in known:
        return f": {hint}"
    nearest = [hint] if hint else [each for each in known if each.startswith(name)]
    nearest = nearest or difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def read_recipe(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """Read a YAML file of flags: the name of a recipe in `folder`, or a path, such as of the configuration of a run.

    Raises:
        UsageError: The file cannot be read, or is not of lines `flag: value`.
    """
    path = Path(os.path.expanduser(name))
    try:
        if not path.is_file() and (folder / f"{name}.yaml").exists():
            path = folder / f"{name}.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
        if not isinstance(values, dict):
            raise UsageError("must have lines of the form flag: value")
        if "format" in values:  # as in the configuration of a run
            check_format(values)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, UsageError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    return {name: value for name, value in values.items() if name != "format"}


def run_program(program: Callable[[], None]) -> int:
    """Run a program as `run_to_status`. One of several processes of a run ends here at once: PyTorch's clean-up of the
    threads between them aborts if another process has ended before.
    """
    status = run_to_status(program)
    if "MASTER_ADDR" in os.environ:  # which a run of several processes has
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def run_to_status(program: Callable[[], None]) -> int:
    """Run a program, print errors that a user can fix as one line on standard error, and return the exit status.

    It is 0 if all went well, 2 for bad flags or input, 1 for anything else, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of a file may have letters that the console's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # programs draw into files; a notebook's backend may not be installed here
    hook, threading.excepthook = threading.excepthook, _report_thread
    try:
        program()
        return 0
    except SettingError as error:
        status, reason = 2, f"--{error}"
    except (UsageError, DataError) as error:
        status, reason = 2, str(error)
    except FloatingPointError as error:
        status, reason = 1, str(error)
    except BrokenPipeError:  # the reader went away, such as `head`; what is still buffered would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            status, reason = 1, str(error.strerror)
        elif error.filename:  # a path that a user gave
            status, reason = 2, f"{error.filename}: {error.strerror}"
        else:
            raise
        reason = "; ".join([reason, *getattr(error, "__notes__", [])])  # what helps
    except Stopped as stop:
        status, reason = 128 + stop.signal, f"stopped; {stop.advice}"
    except KeyboardInterrupt:
        status, reason = 128 + signal.SIGINT, "stopped"
    finally:
        threading.excepthook = hook
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    return status


def _report_thread(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless it could not write a file: TensorBoard's thread raises that in the main
    thread too.
    """
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)
