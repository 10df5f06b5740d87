"""The folder of a result: what stands in it, and what may be replaced."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from onnxcomp import documents
from onnxcomp import model as models
from onnxcomp.errors import OutputError, UsageError, from_os_error
from onnxcomp.shrink.outcome import Outcome
from onnxcomp.shrink.result import Shrunk

#: files of a result beside the model
_RESULTS = ("recipe.toml", "report.html", "settings.json", "shrink.json")


def study_in(folder: Path, *, resume: bool, force: bool, inputs: Sequence[Path]) -> Path:
    """The study's folder, made.

    Args:
        folder: of the result.
        resume: it may hold an earlier search.
        force: what an earlier search has left is removed, and nothing else.
        inputs: may not lie in it: they would be replaced.

    Raises OutputError for a folder that holds something, unless it is wanted so, UsageError for an input in it.
    """
    for path in inputs:
        if path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                "the input lies in the folder of the result, which would replace it",
                where=path,
                hint="choose another folder",
            )
    study = folder / "study"
    if folder.exists() and any(folder.iterdir()) and not resume:
        if not force:
            raise OutputError(
                "the folder exists and is not empty",
                where=folder,
                hint="--resume goes on with it, --force starts anew",
            )
        if not study.exists() and not (folder / "shrink.json").exists():
            raise OutputError("the folder holds something else, which --force does not replace", where=folder)
        shutil.rmtree(study, ignore_errors=True)
        keep(folder, [])
    try:
        study.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error
    return study


def write(folder: Path, result: Shrunk) -> None:
    """The winner with its record and recipe, and the result; the study stays."""
    keep(folder, [] if result.best is None else [result.best.timed.outcome])
    if result.settled is not None:
        settings = documents.to_text(result.settled.winner.to_json()).encode()
        models.write_file(folder / "settings.json", settings, force=True)
    document = {"schema": "onnxcomp/shrink/1", **result.to_json()}
    models.write_file(folder / "shrink.json", documents.to_text(document).encode(), force=True)


def keep(folder: Path, best: Sequence[Outcome]) -> None:
    """Copy the files of the best, where there is one, in place of those of an earlier run."""
    for old in (*folder.glob("best.onnx*"), *(folder / name for name in _RESULTS)):
        old.unlink(missing_ok=True)
    for one in best:
        assert one.path is not None
        made = Path(one.path).parent
        try:
            for file in (*made.glob("best.onnx*"), made / "recipe.toml"):
                shutil.copy2(file, folder / file.name)
        except OSError as error:
            raise from_os_error(error, folder) from error
