"""Files that survive a crash: whole writes, JSON Lines that resume, folders bound to their configuration.

Every command that resumes stands on these few functions. Nothing here removes what relaylab did not write.
"""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
import mmap
import os
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

CONFIG = "config.json"  # what a folder was made with; its presence says that the folder is ours
Item = TypeVar("Item")


# Whole writes ---------------------------------------------------------------------------------------------------------


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Let an OSError that names no file name this one: that of a full disk does not say what was being written.

    >>> with naming("a.txt"): raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'a.txt'
    """
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def write_whole(path: str | os.PathLike, data: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new, also after a power cut.

    >>> import tempfile; path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_whole(path, "new"); path.read_text()
    'new'
    """
    path = Path(path)
    rest = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path), open(rest, "xb") as out:
            out.write(data.encode() if isinstance(data, str) else data)
            out.flush()
            os.fsync(out.fileno())
        if path.exists():  # it keeps its rights; a new file has those of the user's umask
            shutil.copymode(path, rest)
        os.replace(rest, path)
        _flush_folder(path.parent)
    except BaseException:
        rest.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Names in a folder are its content: flushed, a power cut does not bring the old ones back."""
    if os.name == "posix":  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as indented JSON, whole."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=True) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file. A ValueError names a file that is empty or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is empty or broken ({error}); remove it to begin anew") from None


def check_own_file(path: str | os.PathLike, begins: bytes) -> None:
    """Before a file is written anew: a ValueError if ``path`` holds something that does not begin as ours do."""
    if Path(path).exists():
        with open(path, "rb") as file:
            head = file.read(len(begins))
        if head not in (b"", begins):
            raise ValueError(f"{path} holds something else than relaylab writes there; choose another file")


def check_replaceable(out: str | os.PathLike, *, marker: str) -> None:
    """Before long work: a ValueError if ``out`` holds something else than ``replaced_folder`` may replace."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / marker).exists())):
        raise ValueError(f"{out} is not empty and this command did not make it: no {marker}; choose another folder")


@contextmanager
def replaced_folder(out: str | os.PathLike, *, marker: str) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``out`` at the end, whole or not at all.

    ``out`` may be missing, empty, or hold a file ``marker`` (such as ``training.json``), which says that it is ours.

    Raises:
        ValueError: where ``out`` holds something else; nothing is removed.
    """
    out = Path(out)
    check_replaceable(out, marker=marker)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True)
    with beside as work, naming(out):
        fresh = Path(work) / "new"
        fresh.mkdir()
        yield fresh
        for file in fresh.rglob("*"):  # a power cut after the renaming must not leave an empty file
            if file.is_file():
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
        if out.exists():
            out.rename(Path(work) / "old")
        fresh.rename(out)
        _flush_folder(out.parent)


@contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Nobody else writes ``path`` meanwhile; a ValueError if another process does already."""
    from filelock import FileLock, Timeout  # slow to import, and most commands only read

    path = Path(path)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another relaylab process writes {path}; wait for it, or choose another name") from None


# Configurations -------------------------------------------------------------------------------------------------------


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as its JSON gives it back: tuples are lists, paths are text."""
    return json.loads(json.dumps(config, default=str))


def own_code(*things: Any) -> dict[str, str]:
    """Digests of the sources of functions and classes (also of objects) that are somebody's own, by name.

    A configuration holds them, because a name stands for other code once its file is edited.

    >>> own_code(LineWriter, len, None)
    {}
    """
    digests = {}
    for thing in things:
        kind = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
        if str(kind.__module__).partition(".")[0] not in ("relaylab", "builtins"):
            with suppress(OSError, TypeError):  # compiled, or typed at a prompt: there is no source
                source = inspect.getsource(kind).encode(errors="surrogatepass")
                digests[kind.__qualname__] = hashlib.blake2b(source, digest_size=8).hexdigest()
    return digests


def check_config(where: str | os.PathLike, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the configuration that a file or folder was made with to the present one.

    Raises:
        ValueError: names each setting that differs, with both values. Where most of the former settings are none of
            this command's, it says that something else is there.

    >>> check_config("runs/a", {"seed": 0}, {"seed": 1})
    Traceback (most recent call last):
    ValueError: runs/a was made with another configuration: seed was 0, is 1; nothing was changed; choose another name
    """
    kept, now = "nothing was changed; choose another name", _flat(plain(now))
    before = _flat(before) if isinstance(before, dict) else {"": before}  # a foreign file may hold anything
    if not (changed := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))):
        return
    if len(before.keys() & now.keys()) < len(before) / 2:
        raise ValueError(f"{where} holds something else than this command makes; {kept}")
    text = "; ".join(f"{k} was {_short(before.get(k))}, is {_short(now.get(k))}" for k in changed)
    raise ValueError(f"{where} was made with another configuration: {text}; {kept}")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Entries of its mappings stand as settings of their own: an error names the one weight that differs."""
    inner = {f"{key}.{k}": v for key, value in config.items() if isinstance(value, dict) for k, v in value.items()}
    return {key: value for key, value in config.items() if not (value and isinstance(value, dict))} | inner


def bind_folder(folder: str | os.PathLike, config: dict[str, Any]) -> Path:
    """Make a folder for a configuration, or check that it was made with this one.

    Raises:
        ValueError: where the folder holds another configuration, or files and no configuration.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        # Hidden files are those that another shard is writing this moment.
        other = folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir()))
        if other and not (folder / CONFIG).exists():
            raise ValueError(f"{folder} is not empty and holds no {CONFIG} of this command; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CONFIG).exists():
            write_json(folder / CONFIG, plain(config))
    check_config(folder, read_json(folder / CONFIG), config)
    return folder


def _short(value: Any) -> str:
    text = json.dumps(value)
    size = f" ({len(value)} entries)" if isinstance(value, list) else ""
    return text if len(text) <= 80 else f"{text[:77]}...{size}"


# JSON Lines -----------------------------------------------------------------------------------------------------------


def read_lines(path: str | os.PathLike, parse: Callable[[dict[str, Any]], Item] = lambda data: data) -> Iterator[Item]:
    """The records of a JSON Lines file (also ``.gz``), one at a time; a torn last line is left out.

    Raises:
        ValueError: with file and line, for a broken line that is not the last; for a ``.gz`` that is cut off.
    """
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return  # this line was being written when its writer died
                try:
                    item = parse(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: not a record of relaylab ({error})") from error
                yield item
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file ({error})") from error


class LineWriter:
    """Appends records to a JSON Lines file, each flushed whole, after cutting off a torn last line.

    ``begins`` are the first bytes of every line. A last line without a line break that does not begin so is not ours.

    Raises:
        ValueError: if another process writes the file, if it does not end in a line of ours, and for a ``.gz``.
    """

    def __init__(self, path: str | os.PathLike, *, begins: bytes = b"{"):
        self.path = Path(path)
        if self.path.suffix == ".gz":
            raise ValueError(f"{path}: records are appended as plain text; leave out .gz, and compress the file later")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            if self.path.exists():
                _cut_torn(self.path, begins)
            self._file = open(self.path, "ab")  # noqa: SIM115 - it stays open until close()
            self._lock = stack.pop_all()

    def write_line(self, line: str) -> None:
        """Append one line, which holds no line break."""
        with naming(self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def replace_lines(self, lines: Iterable[str]) -> None:
        """Let the file hold these lines, and nothing else, in one step."""
        self._file.close()
        write_whole(self.path, b"".join(line.encode() + b"\n" for line in lines))
        self._file = open(self.path, "ab")  # noqa: SIM115

    def close(self) -> None:
        with self._lock, naming(self.path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_torn(path: Path, begins: bytes) -> None:
    """Cut off what stands after the last line break. The file may be large, so it is not read whole."""
    if not (size := path.stat().st_size):
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = data.rfind(b"\n") + 1
        heads = [data[at : at + len(begins)] for at in (0, whole)]  # of the first line and of the torn one
    if not all(begins.startswith(head) or head.startswith(begins) for head in heads):
        raise ValueError(f"{path} holds something else than relaylab writes there; choose another file")
    if whole < size:
        os.truncate(path, whole)


# Shards ---------------------------------------------------------------------------------------------------------------


def shard(items: Sequence[Item], part: str | None) -> list[Item]:
    """Part ``i/n`` of some items, i from 1 to n; all of them for None.

    >>> shard("abcde", "2/2")
    ['b', 'd']

    Raises:
        ValueError: for a text that is not of this form, and for a part that has none of the items.
    """
    if part is None:
        return list(items)
    number, slash, count = part.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"a shard is written i/n with 1 <= i <= n, such as 2/4, not {part!r}")
    if int(number) > len(items):
        raise ValueError(f"shard {part} has none of the {len(items)} problems; take at most {len(items)} shards")
    return list(items[int(number) - 1 :: int(count)])


def shard_path(path: str | os.PathLike, part: str | None) -> Path:
    """Where a shard of the file ``path`` is written: beside it, so that shards never share a file.

    >>> shard_path("runs/traces.jsonl", "2/4").name
    'traces.2-of-4.jsonl'
    """
    path = Path(path)
    return path if part is None else path.with_name(f"{path.stem}.{part.replace('/', '-of-')}{path.suffix}")


def shard_files(path: str | os.PathLike) -> list[Path]:
    """The shards of the file ``path`` that exist."""
    path = Path(path)
    name = re.compile(rf"{re.escape(path.stem)}\.\d+-of-\d+{re.escape(path.suffix)}")
    return sorted(file for file in path.parent.glob("*") if name.fullmatch(file.name))
