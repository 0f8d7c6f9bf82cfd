"""Edits of the configuration file in place: comments, order, unknown keys and ``$VAR`` references stay."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ConfigInvalid

_RUNNERS = re.compile(r"^\s*\[\[\s*runners\s*\]\]", re.IGNORECASE)
_TABLE = re.compile(r"^\s*\[")
# Why a file may not be replaceable and yet be writable: a mount of its own, a directory of somebody else's.
_IN_PLACE = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
NEW_FILE = "concurrent = 1\n"


def why_not_writable(path: Path) -> str:
    """Why the file could not be saved; empty when it could."""
    if path.exists() and not path.is_file():
        return f"{path}: not a regular file"
    place = path if path.exists() else _nearest(path.parent)
    if os.access(place, os.W_OK):
        return ""
    return f"{place}: permission denied"


def why_token_not_writable(path: Path, token_file: str) -> str:
    """The same of all that :func:`store_token` writes."""
    return why_not_writable(path) or (why_not_writable(Path(os.path.expandvars(token_file))) if token_file else "")


def _nearest(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """The time from reading a file to saving it, in which no other process of ours edits one of its directory."""
    directory = path.resolve().parent
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # what stands in the way of saving is said then
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def append_runner(path: Path, values: Mapping[str, Any]) -> None:
    """Add an entry at the end; a missing file is created (0600, its directory 0700)."""
    with _alone(path):
        text = _read(path) if path.exists() else NEW_FILE
        if text and not text.endswith("\n"):
            text += "\n"
        text = f"{text}\n{runner_text(values)}"
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigInvalid(
                f"saving the file: {path}: an entry cannot be added, write runners as [[runners]]: {error}"
            ) from error
        save(path, text)


def runner_text(values: Mapping[str, Any]) -> str:
    """A ``[[runners]]`` entry as text; tables inside of it become sub-tables."""
    return "\n".join(["[[runners]]", *_table_lines("runners", values, "")]) + "\n"


def _table_lines(name: str, values: Mapping[str, Any], indent: str) -> list[str]:
    """The content of a table: its values, then the tables in it."""
    import tomlkit

    lines: list[str] = []
    tables: list[str] = []
    for key, value in values.items():
        shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else tomlkit.item(key).as_string()
        inside = f"{name}.{shown}"
        if isinstance(value, Mapping):
            tables += [f"{indent}  [{inside}]", *_table_lines(inside, value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for one in value:
                tables += [f"{indent}  [[{inside}]]", *_table_lines(inside, one, indent + "  ")]
        else:
            lines.append(f"{indent}  {shown} = {tomlkit.item(value).as_string()}")
    return [*lines, *tables]


def remove_runners(path: Path, indexes: Sequence[int]) -> None:
    """Take entries out, with the comments that stand right above them; the former file stays as ``.bak`` where it can."""
    with _alone(path):
        text = _read(path)
        wanted = _without(tomllib.loads(text), indexes)
        left = _without_lines(text, indexes)
        if left is None or tomllib.loads(left) != wanted:
            left = _without_entries(text, indexes)
        with contextlib.suppress(OSError):
            _write_new(path.with_name(path.name + ".bak"), text.encode(), 0o600)
        save(path, left)


def _runners_key(document: Iterable[str]) -> str:
    return next(key for key in document if key.lower() == "runners")


def _without(document: dict[str, Any], indexes: Sequence[int]) -> dict[str, Any]:
    key = _runners_key(document)
    left = [runner for index, runner in enumerate(document.pop(key)) if index not in indexes]
    return {**document, key: left} if left else document


def _without_lines(text: str, indexes: Sequence[int]) -> str | None:
    """The text without the lines of entries; None where their headers are not found. It may be wrong: a text in the file
    can look like a header."""
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if _RUNNERS.match(line)]
    if max(indexes) >= len(starts):
        return None
    for begin, end in [_span(lines, starts, index) for index in sorted(indexes, reverse=True)]:
        del lines[begin:end]
    try:
        tomllib.loads("".join(lines))
    except tomllib.TOMLDecodeError:
        return None
    return "".join(lines)


def _without_entries(text: str, indexes: Sequence[int]) -> str:
    """The same by the meaning of the text; a comment above an entry may stay."""
    import tomlkit

    document = tomlkit.parse(text)
    key = _runners_key(document)
    runners: Any = document[key]
    for index in sorted(indexes, reverse=True):
        del runners[index]
    if not runners:
        del document[key]
    return tomlkit.dumps(document)


def _span(lines: list[str], starts: list[int], index: int) -> tuple[int, int]:
    """The lines of an entry: from its comments to the comments of what follows it."""
    begin = _with_comments(lines, starts[index])
    follows = [number for number in range(starts[index] + 1, len(lines)) if _begins_other(lines[number])]
    end = _with_comments(lines, follows[0]) if follows else len(lines)
    return begin, end


def _begins_other(line: str) -> bool:
    """A header that does not belong to the entry above it."""
    inner = re.match(r"^\s*\[\[?\s*runners\s*\.", line, re.IGNORECASE)
    return bool(_TABLE.match(line)) and inner is None


def _with_comments(lines: list[str], number: int) -> int:
    while number > 0 and lines[number - 1].lstrip().startswith("#"):
        number -= 1
    return number


def set_runner_values(path: Path, index: int, values: Mapping[str, Any]) -> None:
    """Change values of one entry, and nothing else."""
    import tomlkit

    with _alone(path):
        document = tomlkit.parse(_read(path))
        runners: Any = document[_runners_key(document)]
        entry = runners[index]
        for key, value in values.items():
            name = next((known for known in entry if known.lower() == key.lower()), None)
            if name is not None:
                entry[name] = value
                continue
            item = tomlkit.item(value)
            item.trivia.indent = _indent_of(entry)
            entry[key] = item
        save(path, tomlkit.dumps(document))


def _indent_of(entry: Any) -> str:
    """How far the first key of an entry stands to the right."""
    items = [entry.item(key) for key in entry]
    return str(items[0].trivia.indent) if items else "  "


def store_token(path: Path, index: int, token_file: str, values: Mapping[str, Any]) -> None:
    """Keep a new token of an entry, with its times; where the entry names a file for it, in that file."""
    values = dict(values)
    if token_file:
        save(Path(os.path.expandvars(token_file)), f"{values.pop('token')}\n")
    set_runner_values(path, index, values)


def save(path: Path, text: str) -> None:
    """Replace the file at once; owner and mode stay. A single-file mount, and a file whose directory takes no others, is
    rewritten in place. Raises :class:`ConfigInvalid` when the file cannot be saved."""
    raw = text.encode()
    target = path.resolve()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = target.stat()
        mode = about.st_mode & 0o777
    except FileNotFoundError:
        about, mode = None, 0o600
    except OSError as error:
        raise ConfigInvalid(f"saving the file: {path}: {error.strerror}") from error
    if about is not None and not stat.S_ISREG(about.st_mode):
        raise ConfigInvalid(f"saving the file: {path}: not a regular file")
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        _write_new(new, raw, mode)
        if about is not None and (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(new, about.st_uid, about.st_gid)
        new.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if about is None or error.errno not in _IN_PLACE:
            raise ConfigInvalid(f"saving the file: {path}: {error.strerror}") from error
        try:
            _rewrite(target, raw)
        except OSError as again:
            raise ConfigInvalid(f"saving the file: {path}: {again.strerror}") from again


def _write_new(path: Path, raw: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(raw)
        file.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)


def _rewrite(path: Path, raw: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with open(fd, "r+b") as file:
        fcntl.flock(fd, fcntl.LOCK_EX)
        file.write(raw)
        file.truncate()
        os.fsync(fd)


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")
