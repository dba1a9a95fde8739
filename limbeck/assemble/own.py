"""What is one's own, named in a recipe by its import path `package.module:name`: losses, changes, actors, kinds and writers of text."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.distil.actors import Actor
from limbeck.errors import UserError
from limbeck.models.changes import Change
from limbeck.recipe.models import Models


def found(path: str, where: str) -> Any:
    """What stands at an import path, None where the module has no such name; modules of the working directory are found as well.

    Raises:
        UserError: there is no such module, or importing it fails; `where` is the place in the recipe.
    """
    module, _, name = path.partition(":")
    here = [str(Path.cwd())] if str(Path.cwd()) not in sys.path else []
    sys.path.extend(here)
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{where}: {path}: there is no module {error.name}; run from its folder, or install it"
        ) from None
    except Exception as error:  # whatever somebody else's module does when it is imported
        raise UserError(f"{where}: {path}: importing it fails ({type(error).__name__}: {error}); mend it") from None
    finally:
        for added in here:
            sys.path.remove(added)


def source_sha256(path: str) -> str:
    """The fingerprint of the file in which it stands."""
    file = inspect.getsourcefile(inspect.unwrap(found(path, "settings")))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def change(path: str) -> Change:
    """The change of a student at an import path, made anew.

    Raises:
        UserError: there is no such class, or making it fails.
    """
    return made(path, "models.student.changes", Change)


def actor(path: str, inner: Actor, where: str) -> Actor:
    """An actor of one's own around that of a model.

    Raises:
        UserError: there is no such class, or what it makes is no actor.
    """
    return made(path, where, Actor, (inner,))


def require(said: Models) -> None:
    """Whether all actors of one's own in a table `models` are there.

    Raises:
        UserError: one is not.
    """
    for path in (source.actor for source in said.fixed if source.actor):
        _class(path, "models.teacher.actor", Actor)


def _class(path: str, where: str, kind: type) -> Any:
    own, name = found(path, where), path.partition(":")[2]
    if not (isinstance(own, type) and kind in own.__mro__):
        raise UserError(
            f"{where}: {path}: there is no class {name} of limbeck's {kind.__name__} there; write class {name}({kind.__name__})"
        )
    return own


def made(path: str, where: str, kind: type, given: Sequence[Any] = ()) -> Any:
    """What a class of one's own, of limbeck's `kind`, makes of what it is given.

    Raises:
        UserError: there is no such class, or making it fails.
    """
    own = _class(path, where, kind)
    try:
        return own(*given)
    except Exception as error:  # whatever somebody else's class does when it is made
        raise UserError(f"{where}: {path}: making it fails ({type(error).__name__}: {error}); mend it") from None
