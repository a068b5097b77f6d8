"""The command line of all programs: settings as flags, files of flags, the line that refuses, and how a program ends.

Light to import, so that a bad flag is refused at once.
"""

import argparse
import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, NoReturn

import shtab
import yaml

from core.errors import DataError, SettingError, UsageError
from core.settings import Settings, check_format, checked, choices, kinds, settings, types_of
from core.signals import Stopped

RECIPES = Path(__file__).parent.parent / "recipes"
UNUSABLE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)  # paths that a user gave
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """argparse's parser, that says what is wrong in one line.

    Hyphens and underscores are the same in a flag's name; a flag that is not known names the nearest one; a flag beside
    `--config` wins wherever it stands. `--print_completion SHELL` prints what completes the flags in a shell.

    Args:
        program: Its docstring: what it does, then examples, which end the help.
    """

    def __init__(self, program: str | None, **options: Any) -> None:
        description, _, examples = (program or "").partition("\n\n")
        super().__init__(
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        shtab.add_argument_to(self, "--print_completion", help="Print a script that completes the flags in this shell.")

    def add_config(self, help: str, recipes: Path = RECIPES) -> None:
        """`--config FILE`; `recipes` is the folder in which bare names are looked for."""
        absent = argparse.SUPPRESS
        self.add_argument("--config", action=RecipeFile, const=recipes, default=absent, metavar="FILE", help=help)

    def add_settings(self, kind: type[Settings], names: Iterable[str] | None = None) -> None:
        """A flag for each setting of a group, or for some; `parse_args` returns those that are given."""
        title, _, what = (kind.__doc__ or "").splitlines()[0].partition(": ")
        group = self.add_argument_group(title, what)
        for name in settings(kind) if names is None else names:
            each, hint = settings(kind)[name], types_of(kind)[name]  # type: ignore[arg-type]
            listed = [str(value) for part in kinds(hint) for value in choices(part)]
            listed += ["true", "false"] if hint is bool else []
            group.add_argument(
                f"--{name}",
                type=taken(each, hint),
                metavar=f"{{{','.join(listed)}}}" if listed else "|".join(filter(None, map(METAVARS.get, kinds(hint)))),
                nargs="?" if hint is bool else None,
                const=True if hint is bool else None,
                default=argparse.SUPPRESS,
                help=f"{each.metadata['help']} (default: {in_yaml(each.default)})".replace("%", "%%"),
            )

    def parse_args(self, arguments: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if arguments is None else arguments)
        flags = words.index("--") if "--" in words else len(words)  # what follows are no flags
        words[:flags] = [self._tidied(word) for word in words[:flags]]
        parsed = super().parse_args(_config_first(words), namespace)
        del parsed.print_completion
        return parsed

    def _tidied(self, word: str) -> str:
        """A flag with underscores; an unknown one is refused."""
        if not word.startswith("--"):
            return word
        flag, equals, value = word.partition("=")
        flag = "--" + flag[2:].replace("-", "_")
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if flag not in known:
            nearest = [option for option in known if option.startswith(flag)]
            nearest = nearest or difflib.get_close_matches(flag, known, n=1)
            self.error(f"{flag}: no such flag" + (f"; did you mean {nearest[0]}?" if nearest else ""))
        return flag + equals + value

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see --help\n")


class RecipeFile(argparse.Action):
    """`--config FILE`: a YAML file of flags, which are taken; a bare name is looked for in the folder `const`."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        known = {action.dest: action for action in parser._actions}
        for name, given in read_recipe(value, self.const).items():
            if name not in known or name in (self.dest, "help", "print_completion"):
                nearest = difflib.get_close_matches(name, known, n=1)
                raise UsageError(f"{value}: {name} is no flag" + (f"; did you mean {nearest[0]}?" if nearest else ""))
            action = known[name]
            take: Callable[[Any], Any] = action.type or (lambda text: text)
            if action.nargs == "+":
                given = [in_yaml(each) for each in (given if isinstance(given, list) else [given])]
                setattr(namespace, name, [take(each) for each in given])
            else:
                setattr(namespace, name, take(given))


def read_recipe(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """The flags in a YAML file: a recipe, or the configuration that a run wrote; UsageError if it is none. Aliases are
    refused, since a few lines of them can stand for terabytes.
    """
    path = recipe_path(name, folder)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise UsageError(f"{path}: YAML aliases are not taken")
        values = yaml.safe_load(text) or {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path}: must have lines of the form flag: value")
    try:
        if "format" in values:  # as in the configuration of a run
            check_format(values)
        return {name: value for name, value in values.items() if name != "format"}
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def recipe_path(name: str, folder: Path = RECIPES) -> Path:
    """The file that the path of a recipe, or its name in this folder, stands for."""
    path, known = Path(os.path.expanduser(name)), folder / f"{name}.yaml"
    return known if not path.is_file() and known.exists() else path


def taken(each: Field, hint: Any) -> Callable[[Any], Any]:
    """Turns the text of a flag into its value; UsageError, which argparse passes on, if it is none."""

    def take(value: Any) -> Any:
        try:
            return checked(each, hint, value)
        except SettingError as error:
            raise UsageError(f"--{error}") from error

    return take


def in_yaml(value: Any) -> str:
    """A value as a flag or a file of flags has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _config_first(words: list[str]) -> list[str]:
    """The command line with `--config FILE` at its start, so that the other flags win."""
    for place, word in enumerate(words):
        if word.partition("=")[0] == "--config":
            end = place + (1 if "=" in word else 2)
            return [*words[place:end], *words[:place], *words[end:]]
    return words


def exit_status(program: Callable[[], None]) -> int:
    """`status_of` a program. One of several processes ends here at once: the clean-up of PyTorch's threads for them
    aborts where another process has ended already."""
    status = status_of(program)
    if "MASTER_ADDR" in os.environ:  # which a run of several processes has
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def status_of(program: Callable[[], None]) -> int:
    """Run a program; what a user can mend becomes one line on standard error. The status is that of the contract:
    0 done, 2 bad flags or input, 1 anything else, 130 after Ctrl-C, 143 after SIGTERM."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of a file may have letters that the console's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        program()
        return 0
    except SettingError as error:
        status, reason = 2, f"--{error}"
    except (UsageError, DataError) as error:
        status, reason = 2, str(error)
    except UnicodeEncodeError as error:
        status, reason = 2, f"{error.object!a} is no name in this system's encoding; with PYTHONUTF8=1 it is"
    except FloatingPointError as error:
        status, reason = 1, str(error)
    except BrokenPipeError:  # the reader went away, such as `head`; what is still buffered would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            status, reason = 1, f"{error.strerror}; the last whole checkpoint stands"
        elif error.filename and error.errno in UNUSABLE:
            status, reason = 2, f"{error.filename}: {error.strerror}"
        else:
            raise
    except Stopped as stop:
        status, reason = 128 + stop.signal, f"stopped; {stop.advice}"
    except KeyboardInterrupt:
        status, reason = 128 + signal.SIGINT, "stopped"
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    return status
