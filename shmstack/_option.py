"""Kinds of option: how the text of an EF_ variable becomes a value, and what it may be.

The declaration of an option is a class attribute of `options.Options`, and every instance has the value under the
same name in its own dictionary.  So nothing here runs when a value is read; `__get__` is declared for type checkers
alone, to give the attribute the type of the value.
"""
from __future__ import annotations

from shmstack.errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STACK, PROCESS = "stack", "process"
FOREVER = -1
_INT_MAX = 2**31 - 1


class Option:
    """One knob: how its text becomes a value, and what it is for.

    Parameters
    ----------
    doc : str
        One sentence.
    default : value
    scope : {"stack", "process"}
        Fixed when the stack is created, or read by each process for itself.
    """

    name = attribute = ""

    def __init__(self, doc: str, default: Any, scope: str = PROCESS) -> None:
        self.doc, self.default, self.scope = " ".join(doc.split()), default, scope

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute, self.name = attribute, f"EF_{attribute.upper()}"

    @property
    def range(self) -> str:
        """What the option takes, for a reader."""
        return "text"

    def parse(self, value: Any) -> Any:
        """Return the value that `value` (text, or already a value) stands for; raise OptionError."""
        return str(value)

    def format(self, value: Any) -> str:
        """Return the text that `parse` turns into `value`."""
        return str(value)

    def _refuse(self, value: Any) -> OptionError:
        return OptionError(f"wanted {self.name} to be {self.range}, found {self.name}={value}")


class Number(Option):
    """An integer between `least` and `most`; `names` are what the numbers from 0 are called."""

    def __init__(self, doc: str, default: int | None, least: int = 0, most: int = _INT_MAX, *,
                 names: str = "", scope: str = PROCESS) -> None:
        super().__init__(doc, default, scope)
        self.least, self.most, self.names = least, most, names.split()

    @property
    def range(self) -> str:
        if self.names:
            return "one of " + ", ".join(f"{number} ({name})" for number, name in enumerate(self.names))
        return f"a number {self.least}..{self.most}"

    def parse(self, value: Any) -> Any:
        text = str(int(value) if isinstance(value, bool) else value).strip().lower()
        if text in self.names:
            return self.names.index(text)
        try:
            number = int(text, 16 if text.startswith("0x") else 10)
        except ValueError:
            raise self._refuse(value) from None
        if not self.least <= number <= self.most:
            raise self._refuse(value)
        return number

    if TYPE_CHECKING:
        def __get__(self, instance: object, owner: type) -> int: ...


class MaybeNumber(Number):
    """A number that may be left open: unset is None."""

    if TYPE_CHECKING:
        def __get__(self, instance: object, owner: type) -> int | None: ...  # type: ignore[override]


class Flag(Number):
    """0 or 1; the value is a bool."""

    def __init__(self, doc: str, default: bool | None, scope: str = PROCESS) -> None:
        super().__init__(doc, default, 0, 1, names="no yes", scope=scope)

    def parse(self, value: Any) -> Any:
        return bool(super().parse(value))

    def format(self, value: Any) -> str:
        return str(int(value))

    if TYPE_CHECKING:
        def __get__(self, instance: object, owner: type) -> bool: ...


class MaybeFlag(Flag):
    """A flag that may be left open: unset is None."""

    if TYPE_CHECKING:
        def __get__(self, instance: object, owner: type) -> bool | None: ...  # type: ignore[override]


class Text(Option):
    """Text; with `letters`, at most 16 of them."""

    def __init__(self, doc: str, default: str = "", *, letters: str = "", scope: str = PROCESS) -> None:
        super().__init__(doc, default, scope)
        self.letters = letters

    @property
    def range(self) -> str:
        return "at most 16 of the characters A-Z a-z 0-9 _ . -" if self.letters else "text"

    def parse(self, value: Any) -> Any:
        text = str(value)
        if self.letters and (len(text) > 16 or text.strip(self.letters) or text in (".", "..")):
            raise self._refuse(value)
        return text

    if TYPE_CHECKING:
        def __get__(self, instance: object, owner: type) -> str: ...


class Words(Option):
    """Words out of a fixed set, with commas between; they are added to the default, `-word` takes one away."""

    def __init__(self, doc: str, default: str, more: str, scope: str = PROCESS) -> None:
        super().__init__(doc, frozenset(default.split()), scope)
        self.words = default.split() + more.split()

    @property
    def range(self) -> str:
        return "a list, with commas, of " + ", ".join(self.words) + " (each with - before it to take it away)"

    def parse(self, value: Any) -> Any:
        if isinstance(value, frozenset):
            return value
        chosen = set(self.default)
        for word in filter(None, (part.strip() for part in value.split(","))):
            bare = word.removeprefix("-")
            if bare not in self.words:
                raise self._refuse(value)
            (chosen.discard if word.startswith("-") else chosen.add)(bare)
        return frozenset(chosen)

    def format(self, value: Any) -> str:
        return ",".join(word if word in value else "-" + word for word in self.words)

    if TYPE_CHECKING:
        def __get__(self, instance: object, owner: type) -> frozenset[str]: ...
