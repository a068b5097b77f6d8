"""Command lines that the programs print or keep: pasted, they give the same words back."""

import os
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent


def command_line(*words: object) -> str:
    """Words, such as a program and its arguments, as a line for this system's shells.

    Quotes, where they are needed, are double: sh, cmd and PowerShell take them, so that the line of a page or of a
    checkpoint works elsewhere too. On POSIX, a word with a character that acts within them has single ones. On Windows,
    `$` and the backtick, which PowerShell alone reads, and `%`, which cmd alone reads, have no common form.
    """
    return " ".join(quoted(str(word)) for word in words)


def quoted(word: str) -> str:
    windows = os.name == "nt"
    if re.fullmatch(r"[\w+=:./\\-]+" if windows else r"[\w+=:./,-]+", word):
        return word
    if windows:
        from subprocess import list2cmdline  # not needed elsewhere

        return '"' + list2cmdline([f" {word}"])[2:]  # it quotes only for white space
    return shlex.quote(word) if set(word) & set('"$`\\!') else f'"{word}"'


def script(name: str) -> str:
    """The file of a command, such as train.py, as it is found from the working directory."""
    return name if Path(name).resolve() == ROOT.resolve() / name else str(ROOT / name)
