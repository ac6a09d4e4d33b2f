"""Profiles: files of options under a name, in the form that Onload's have.

    # a comment
    onload_import safe
    onload_set EF_POLL_USEC 100000

A setting gives way to what the environment has, and so to an earlier setting: the first one holds.  With `force` it
replaces what is there: the last one holds.
"""
from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, MutableMapping
from pathlib import Path

_SHIPPED = Path(__file__).resolve().parent


class ProfileNotFound(Exception):
    """No profile has this name; `searched` are the places where it could have been."""

    def __init__(self, name: str, searched: list[Path]) -> None:
        super().__init__(f"wanted profile {name}, found none in:\n" + "\n".join(f"  {place}" for place in searched))
        self.searched = searched


class ProfileError(ValueError):
    """A line of a profile can't be understood; the message names file and line."""


def places(name: str, home: Path | None = None) -> list[Path]:
    """Return where a profile may be, first choice first: the user's, ours, the name as a path."""
    user = (home or Path.home()) / ".shmstack" / "profiles"
    return [user / f"{name}.opf", _SHIPPED / f"{name}.opf", Path(name)]


def find(name: str) -> Path:
    """Return the profile's file; raise ProfileNotFound."""
    searched = places(name)
    for place in searched:
        if place.is_file():
            return place
    raise ProfileNotFound(name, searched)


def shipped() -> list[str]:
    """Return the names of the profiles that come with shmstack."""
    return sorted(path.stem for path in _SHIPPED.glob("*.opf"))


def apply(names: Iterable[str], environ: MutableMapping[str, str], force: bool = False) -> None:
    """Put the settings of the profiles into `environ`."""
    for name in names:
        _apply(find(name), environ, force, ())


def _apply(path: Path, environ: MutableMapping[str, str], force: bool, importers: tuple[Path, ...]) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}:{number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ProfileError(f"{where}: {error}") from None
        match words:
            case []:
                pass
            case ["onload_set", name, value] if name.isidentifier():
                if force or name not in environ:
                    environ[name] = value
            case ["onload_import", name]:
                other = find(name)
                if os.path.realpath(other) in [os.path.realpath(importer) for importer in (*importers, path)]:
                    raise ProfileError(f"{where}: wanted another profile, found {name}, which imports this one")
                _apply(other, environ, force, (*importers, path))
            case _:
                raise ProfileError(f"{where}: wanted onload_set VARIABLE VALUE or onload_import PROFILE, "
                                   f"found {line.strip()}")
