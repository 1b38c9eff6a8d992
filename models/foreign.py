"""Models of other people, named 'module:function': the function returns an object with the interface of `utils`.

    def teacher(checkpoint, device):  # either parameter may be left out
        return FromForward(my_net(checkpoint).to(device).eval(), patch_len=24)

Naming one imports the module and calls the function, which runs its code: only a setting that a user gives may do so,
never a file beside weights.
"""
from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from utils.errors import UserError, shorten
from utils.files import digest
from utils.interface import Prediction, State

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
METHODS = ("start", "extend", "fan_out")
GUIDE = "docs/YOUR_MODEL.md shows how"


def is_foreign(name: str) -> bool:
    """True for 'module:function'."""
    return NAME.fullmatch(name) is not None


class ForeignModel:
    """A model of which nothing but the interface is known, with what the program asks of its own models beside that.

    rolling, way: for the identity of what is fitted to it; span: its attention span in patches, unknown.
    """

    rolling = own_rolling = way = "foreign"
    span = None

    def __init__(self, model: Any, label: str):
        self.model, self.label = model, label
        self.patch_len, self.patches_ahead = model.patch_len, getattr(model, "patches_ahead", 1)
        self.heads_ahead = getattr(model, "heads_ahead", 0)

    def start(self, context: torch.Tensor, room: int) -> State:
        return self._asked("start", context, room)

    def extend(self, state: State, patches: torch.Tensor | None = None) -> Prediction:
        return self._asked("extend", state, patches)

    def fan_out(self, state: State, samples: int) -> None:
        self._asked("fan_out", state, samples)

    def to_patches(self, series: torch.Tensor) -> torch.Tensor:
        """[B, T*P, C] -> [B, T, P, C]"""
        return series.unflatten(1, (-1, self.patch_len))

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        """The unit of a law after context [B, N, P, C]: [B, 1, 1, C]."""
        return self.start(context.flatten(1, 2), 0).unit

    def _asked(self, method: str, *arguments: Any) -> Any:
        """Raises UserError with the place in the model's own code where that fails, but not for want of memory."""
        try:
            return getattr(self.model, method)(*arguments)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            if "memory" in str(error):
                raise
            raise UserError(f"{self.label}: {method} failed: {_in_words(error)}") from error


def load(name: str, device: torch.device | str = "cpu", checkpoint: str | Path | None = None) -> ForeignModel:
    """Calls 'module:function', with the checkpoint and the device where it has parameters of these names.

    Raises UserError if it cannot be imported, wants what was not given, or returns anything but a model.
    """
    function, wanted = checked_function(name, checkpoint)
    given = {"checkpoint": checkpoint, "device": torch.device(device)}
    try:
        model = function(**{key: value for key, value in given.items() if key in wanted and value is not None})
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{name} failed: {_in_words(error)}") from error
    return ForeignModel(_checked(model, name), name)


def checked_function(name: str, checkpoint: str | Path | None) -> tuple[Callable[..., Any], set[str]]:
    """The function and the names of its parameters; imports its module, but does not call it.

    Raises UserError if there is none, or it cannot be called with what is given.
    """
    module, wanted = _module(name), name.partition(":")[2]
    function = getattr(module, wanted, None)
    if not callable(function):
        there = sorted(each for each, value in vars(module).items()
                       if inspect.isfunction(value) and value.__module__ == module.__name__)
        raise UserError(f"{name}: {module.__file__} has no function {wanted} (there are: {', '.join(there) or 'none'})")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise UserError(f"{name}: its checkpoint {checkpoint} does not exist: correct the path, or leave it out")
    parameters = inspect.signature(function).parameters
    if checkpoint is not None and "checkpoint" not in parameters:
        raise UserError(f"{name} has no parameter named checkpoint to take {checkpoint}: add it, or name no checkpoint")
    given = {"device"} | ({"checkpoint"} if checkpoint is not None else set())
    for part in parameters.values():
        if part.default is part.empty and part.name not in given and part.kind not in (part.VAR_POSITIONAL,
                                                                                       part.VAR_KEYWORD):
            remedy = "name the file of its weights" if part.name == "checkpoint" \
                else "give it a default (checkpoint and device may be without)"
            raise UserError(f"{name} has a parameter {part.name} that is not given: {remedy}")
    return function, set(parameters)


def identity(name: str, checkpoint: str | Path | None = None) -> dict[str, str]:
    """What tells one foreign model from another: its name, the content of its source, and its checkpoint, if any."""
    source = Path(_module(name).__file__ or "")
    if not source.is_file():
        raise UserError(f"{name}: its module has no source file to know it by: put the function into a file")
    found = {"model": name, "source": digest(source)}
    if checkpoint is not None and Path(checkpoint).is_file():
        found |= {"checkpoint": str(Path(checkpoint).resolve()), "weights": digest(checkpoint)}
    return found


def short_identity(found: dict[str, str]) -> str:
    """A name for files: the model's, and a part of the digest of all."""
    whole = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
    return f"{file_name(found['model'])}_{whole[:12]}"


def file_name(name: str) -> str:
    """The name of any model as a part of a file's name."""
    return name.replace(":", ".")


def _module(name: str) -> ModuleType:
    """The module, from the current folder too: `python -m` and a notebook look there, `python path/run.py` does not."""
    module = name.partition(":")[0]
    here = os.getcwd()
    if here not in sys.path:  # last, and for good: the function may import more when it is called
        sys.path.append(here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{name}: importing {module} failed: {_in_words(error)}") from error
        raise UserError(f"{name}: there is no module {module} in {here} or among the installed packages: correct the "
                        "name, start in its folder, or set PYTHONPATH") from error
    except Exception as error:
        raise UserError(f"{name}: importing {module} failed: {_in_words(error)}") from error


def _checked(model: object, name: str) -> object:
    lacking = [method for method in METHODS if not callable(getattr(model, method, None))]
    if lacking:
        raise UserError(f"{name} returned a {type(model).__name__}, which has no {lacking[0]}: return FromForward, "
                        f"FromCache or a native model ({GUIDE})")
    for number in ("patch_len", "patches_ahead"):
        value = getattr(model, number, 1 if number == "patches_ahead" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name}: its {number} is {shorten(value)}, but must be a whole number, at least 1")
    return model


def _in_words(error: BaseException) -> str:
    """Kind, first line and place of an error in somebody else's code."""
    said = (str(error).splitlines() or [""])[0]
    places = traceback.extract_tb(error.__traceback__)
    where = f", {places[-1].filename}, line {places[-1].lineno}" if places else ""
    return f"{type(error).__name__}: {said}{where}"
