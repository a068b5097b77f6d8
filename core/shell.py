"""Format command lines that programs print or write, so that they can be pasted into a shell."""

import os
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent


def format_command(*words: object) -> str:
    """Join words, such as a program and its arguments, to a line for this system's shells.

    Quotes are double where possible: sh, cmd and PowerShell read them, so the line of a report works on other systems
    too. On POSIX, a word with a character that is special within double quotes has single ones. On Windows there is no
    form that both cmd and PowerShell read for `$`, the backtick and `%`.
    """
    return " ".join(quote(str(word)) for word in words)


def quote(word: str) -> str:
    if re.fullmatch(r"[\w+=:./-]+" if os.name == "nt" else r"[\w+=:./,-]+", word):
        return word
    return f'"{word}"' if os.name == "nt" or not set(word) & set('"$`\\!') else shlex.quote(word)


def find_script(name: str) -> str:
    """Return the path of a program of the project, such as train.py, from the working directory."""
    return name if Path(name).resolve() == ROOT.resolve() / name else str(ROOT / name)
