"""Optional packages: those of requirements-extra.txt and requirements-app.txt."""

from importlib.util import find_spec

from core.errors import UsageError


def require_extra(purpose: str, *modules: str, file: str = "requirements-extra.txt") -> None:
    """Raise UsageError, which says how to install them, if modules of `file` that `purpose` needs are missing."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise UsageError(f"{purpose} needs {' and '.join(missing)}: pip install -r {file}")
