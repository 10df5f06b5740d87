"""A teacher's answers in an SQLite file: each batch whole or not at all, shared by the processes of one host."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.errors import DataError, OutputError, from_os_error

#: seconds to wait for another process that writes
_PATIENCE = 60.0

#: keys of one question to the file; SQLite takes 32766
_ASKED = 500

#: SQLite needs a few for its own tables
_FEWEST_PAGES = 16

#: one array per name, of one sample
Row = Sequence[np.ndarray]


class Answers:
    """Arrays by key, in a file of limited size.

    Args:
        path: made if it is not there; its folder exists.
        about: what the answers follow from; it must be what the file was made with.
        dtype: of all arrays.
        limit_bytes: of the file; while it is open, SQLite keeps a few MiB, or what one batch takes, beside it.

    Attributes:
        full: whether the limit, or the end of the disk, was reached: nothing more is stored.

    Every method raises OutputError for a file that cannot be read or written, DataError for a damaged one.
    DataError at the start also for a file that was made with something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], dtype: np.dtype[Any], *, limit_bytes: int) -> None:
        self.path, self.full, self._dtype = path, False, dtype
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, path.parent) from error
        with self._errors():
            # one thread at a time: the caller sees to it
            self._file = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                held = self._opened(about, limit_bytes)
            except BaseException:
                self._file.close()
                raise
        other = [key for key, value in about.items() if held.get(key) != value]
        if other:
            self._file.close()
            raise DataError(
                f"the cache was made with another {' and another '.join(other)}",
                where=path,
                hint="name another folder, or remove this one",
            )

    def _opened(self, about: Mapping[str, Any], limit_bytes: int) -> dict[str, Any]:
        """What the file was made with; now, if it is new."""
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")  # the power may take the last batches, nothing else
        self._file.execute(f"PRAGMA journal_size_limit = {4 << 20}")
        page = int(self._file.execute("PRAGMA page_size").fetchone()[0])
        self._file.execute(f"PRAGMA max_page_count = {max(limit_bytes // page, _FEWEST_PAGES)}")
        with self._transaction():
            self._file.execute("CREATE TABLE IF NOT EXISTS about (json TEXT)")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, shapes TEXT, checksum INTEGER, data BLOB)"
            )
            found = self._file.execute("SELECT json FROM about").fetchone()
            if found is None:
                found = (json.dumps(dict(about)),)
                self._file.execute("INSERT INTO about VALUES (?)", found)
        held: dict[str, Any] = json.loads(found[0])
        return held

    def __len__(self) -> int:
        with self._errors():
            return int(self._file.execute("SELECT count(*) FROM answers").fetchone()[0])

    @property
    def size_bytes(self) -> int:
        """On the disk, with what SQLite keeps beside the file."""
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*"))

    def look_up(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """The answers that are there."""
        found: dict[bytes, Row] = {}
        with self._errors():
            for start in range(0, len(keys), _ASKED):
                part = keys[start : start + _ASKED]
                query = f"SELECT * FROM answers WHERE key IN ({','.join('?' * len(part))})"  # noqa: S608 - marks only
                for key, *stored in self._file.execute(query, part):
                    found[key] = self._unpacked(*stored)
        return found

    def store(self, rows: Mapping[bytes, Row]) -> None:
        """Add these, all or none; nothing where the file is full."""
        if self.full:
            return
        packed = []
        for key, arrays in rows.items():
            data = b"".join(array.tobytes() for array in arrays)
            packed.append((key, json.dumps([array.shape for array in arrays]), zlib.crc32(data), data))
        with self._errors():
            try:
                with self._transaction():
                    self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", packed)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                self.full = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _unpacked(self, shapes: str, checksum: int, data: bytes) -> Row:
        each = json.loads(shapes)
        sizes = [math.prod(shape) for shape in each]
        if zlib.crc32(data) != checksum or len(data) != sum(sizes) * self._dtype.itemsize:
            raise DataError("an answer in the cache is damaged", where=self.path, hint="remove the folder")
        values = np.split(np.frombuffer(data, self._dtype), np.cumsum(sizes)[:-1])
        return [value.reshape(shape) for value, shape in zip(values, each, strict=True)]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._file.execute("COMMIT")
        except BaseException:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(f"the cache cannot be used: {error}", where=self.path) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise DataError(f"the cache is damaged: {error}", where=self.path, hint="remove the folder") from error
