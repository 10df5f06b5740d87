"""Where samples come from: files, folders of shards, functions, seeded noise.

A source yields shards: dictionaries of arrays whose first axis counts samples, and `labels` where
there are some. Only one shard is in memory at a time; an `.npy`, and a large `.npz` that is not compressed, are
mapped and need none.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import lzma
import os
import sys
import tokenize
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.data import mapped
from onnxcomp.data.noise import Whole, noise, noise_shape
from onnxcomp.errors import DataError, LimitError, OnnxcompError, UsageError, from_os_error
from onnxcomp.model import InputSpec

Shard = Mapping[str, np.ndarray]

LABELS = "labels"

#: an .npz that unfolds beyond this ratio and size is a bomb, not data
_MAX_RATIO = 200
_SMALL_ENOUGH = 64 << 20

#: what numpy and zipfile raise for a damaged file, beside an OSError
_DAMAGE = (
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    lzma.LZMAError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Source:
    """A re-iterable stream of shards.

    Attributes:
        name: what the user asked for, for messages and records.
        random: whether the samples are noise.
    """

    def __init__(self, name: str, shards: Callable[[], Iterable[Shard]], *, random: bool = False) -> None:
        self.name, self._shards, self.random = name, shards, random

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards())


def open_source(
    spec: str | os.PathLike[str],
    inputs: tuple[InputSpec, ...],
    *,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    whole: Mapping[str, Whole] | None = None,
) -> Source:
    """The source that a `--data` argument names.

    Args:
        spec: an `.npz`, an `.npy` (models with one input), a folder of these, `FILE.py:fn` or
            `module:fn` (a function that returns or yields dictionaries of arrays), or
            `random:N[:SEED]`.
        inputs: the model's inputs; noise is made for these, an `.npy` is named after the first.
        batch: size that noise gives a symbolic first axis.
        sizes: sizes of other symbolic axes, for noise.
        whole: which whole numbers an input takes, for noise.

    Raises DataError, OutputError (unreadable), LimitError (an .npz bomb), UsageError.
    """
    text = os.fspath(spec)
    if text.startswith("random:"):
        return _random(text, inputs, batch, sizes or {}, whole or {})
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy"))
        if not files:
            raise DataError("the folder holds no .npz or .npy", where=path)
        return Source(text, lambda: (_read(f, inputs) for f in files))
    if path.suffix in (".npz", ".npy"):
        return Source(text, lambda: iter([_read(path, inputs)]))
    if ":" in text:
        return Source(text, lambda: _shards_of(load_attribute(text), text))
    if not path.exists():
        raise DataError("no such data", where=text, hint="a .npz, .npy, folder, FILE.py:fn or random:N")
    raise DataError(
        f"unknown kind of data '{path.suffix or path.name}'",
        where=text,
        hint="a .npz, .npy, folder, FILE.py:fn or random:N",
    )


def from_arrays(arrays: Shard | Iterable[Shard], name: str = "arrays") -> Source:
    """A source of arrays in memory: one dictionary, or several as shards."""
    given = [arrays] if isinstance(arrays, Mapping) else arrays
    shards = [{key: np.asarray(value) for key, value in shard.items()} for shard in given]
    return Source(name, lambda: shards)


def load_attribute(target: str) -> Any:
    """What `FILE.py:attr` or `module:attr` names. It runs the user's code; only for what they typed.

    Raises UsageError when the module, file or attribute is not there.
    """
    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise UsageError("not of the form FILE.py:name or module:name", where=target)
    try:
        if place.endswith(".py"):
            path = Path(place).absolute()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if not path.is_file() or spec is None or spec.loader is None:
                raise UsageError("no such file", where=place)
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UsageError(f"cannot import '{error.name}'", where=target, hint="is it installed?") from error
    except OnnxcompError:
        raise
    except Exception as error:
        text = f"'{place}' cannot be imported: {type(error).__name__}: {error}"
        raise UsageError(text, where=f"{target}, {_line(error)}") from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UsageError(f"'{place}' has no '{attribute}'", where=target)
        value = getattr(value, part)
    return value


def _read(path: Path, inputs: tuple[InputSpec, ...]) -> Shard:
    try:
        if path.suffix == ".npy":
            if len(inputs) != 1:
                raise DataError(
                    f"an .npy serves models with one input, this one has {len(inputs)}",
                    where=path,
                    hint="use an .npz with an array per input: " + ", ".join(i.name for i in inputs),
                )
            return {inputs[0].name: np.load(path, mmap_mode="r", allow_pickle=False)}
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as archive:
            there = mapped.members(path, archive.zip)
            return {name: there[name] if name in there else archive[name] for name in archive.files}
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a seek to before the start
            raise DataError("the file is damaged", where=path) from error
        raise from_os_error(error, path) from error
    except MemoryError as error:
        raise LimitError(f"not enough memory: {error}", where=path, hint="split the data into shards") from error
    except _DAMAGE as error:
        hint = "arrays of objects (pickles) are never read" if "pickle" in str(error) else None
        raise DataError(f"not a readable numpy file: {error}", where=path, hint=hint) from error


def _refuse_bomb(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unfolded = sum(info.file_size for info in archive.infolist())
    packed = max(path.stat().st_size, 1)
    if unfolded > _SMALL_ENOUGH and unfolded / packed > _MAX_RATIO:
        raise LimitError(
            f"the .npz unfolds to {unfolded} bytes, {unfolded // packed} times its size",
            where=path,
            hint=f"more than {_MAX_RATIO} times looks like a bomb; save it uncompressed if you trust it",
        )


def _shards_of(fn: Any, name: str) -> Iterator[Shard]:
    try:
        made = fn() if callable(fn) else fn
        for shard in [made] if isinstance(made, Mapping) else made:
            if not isinstance(shard, Mapping):
                raise DataError(f"the function gave a {type(shard).__name__}, not a dictionary of arrays", where=name)
            yield {key: np.asarray(value) for key, value in shard.items()}
    except OnnxcompError:
        raise
    except Exception as error:
        text = f"the function failed: {type(error).__name__}: {error}"
        raise DataError(text, where=f"{name}, {_line(error)}") from error


def _line(error: Exception) -> str:
    """Where in the user's code it was raised; a traceback does not survive the way out of a worker."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _random(
    text: str, inputs: tuple[InputSpec, ...], batch: int, sizes: Mapping[str, int], whole: Mapping[str, Whole]
) -> Source:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() for p in parts[1:]):
        raise UsageError("not of the form random:N or random:N:SEED", where=text)
    count, seed = int(parts[1]), int(parts[2]) if len(parts) == 3 else 0
    if count < 1:
        raise DataError("no samples asked for", where=text)
    # an axis that is the first of one input is the batch of the others, too
    first = {spec.shape[0]: batch for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    shapes = {spec.name: noise_shape(spec, batch, {**first, **sizes}) for spec in inputs}
    unknown = set(sizes) - {d for spec in inputs for d in spec.shape or () if isinstance(d, str)}
    if unknown:
        raise UsageError(f"no input has a symbolic axis '{min(unknown)}'", where="--shape")
    names = [spec.name for spec in inputs]

    def shards() -> Iterator[Shard]:
        generator = np.random.default_rng(seed)
        for _ in range(count):
            # one more axis than the input: each sample is one whole run
            yield {
                name: noise(generator, spec, shapes[name], whole.get(name))[np.newaxis]
                for name, spec in zip(names, inputs, strict=True)
            }

    return Source(text, shards, random=True)
