"""What a law is: a name, a sentence, and a function that raises `LawBroken` where it does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NoReturn, TypeVar

from attrs import frozen

from mgk_core.contract.progress import activity, track

T = TypeVar("T")


class LawBroken(AssertionError):
    """A law does not hold. law: its name. detail: on which case, and by how much."""

    def __init__(self, law: str, detail: str) -> None:
        self.law, self.detail = law, detail
        super().__init__(f"{law}: {detail}")


class NotApplicable(Exception):
    """A law does not apply to a subject; the message is the reason."""


class _Broken(Exception):
    """Raised inside a law's function, which does not know the law's name."""


@frozen
class LawResult:
    """The result of testing one law. subject: what was tested. ok: None if it does not apply."""

    law: str
    subject: str
    ok: bool | None
    detail: str = ""


@frozen
class Law(Generic[T]):
    """One law about subjects of a kind. `says`: the sentence that the documentation shows."""

    name: str
    says: str
    function: Callable[[T], None]

    def __call__(self, subject: T) -> None:
        """Test the law on ``subject``.

        :raises LawBroken: also if the plugin raised an unexpected exception
        :raises NotApplicable: the law does not apply to this subject
        """
        try:
            self.function(subject)
        except NotApplicable:
            raise
        except _Broken as error:
            raise LawBroken(self.name, str(error)) from None
        except Exception as error:  # a plugin may raise anything, and whatever it is, the law does not hold
            raise LawBroken(
                self.name, f"raised {type(error).__name__}: {error}"
            ) from error

    def hold(self, subject: T, named: str) -> LawResult:
        """Return what calling the law comes to, as a row of a table."""
        try:
            self(subject)
        except NotApplicable as reason:
            return LawResult(self.name, named, None, str(reason))
        except LawBroken as broken_:
            return LawResult(self.name, named, ok=False, detail=broken_.detail)
        return LawResult(self.name, named, ok=True)

    def __str__(self) -> str:
        return self.name


def law(name: str) -> Callable[[Callable[[T], None]], Law[T]]:
    """Make a law of a function; its docstring's first paragraph is the law's statement."""

    def make(function: Callable[[T], None]) -> Law[T]:
        says = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        return Law(name, says, function)

    return make


def broken(detail: str) -> NoReturn:
    """Fail the law that is being tested."""
    raise _Broken(detail)


def require(ok: object, detail: str) -> None:
    """Fail the law that is being tested unless ``ok``."""
    if not ok:
        broken(detail)


def hold_all(laws: Iterable[Law[T]], subject: T, named: str) -> list[LawResult]:
    """Run several tests on a subject, each on its own; their progress is reported."""
    with activity(f"testing {named}"):
        return [one.hold(subject, named) for one in track(list(laws), "tests")]


def assert_hold(results: Iterable[LawResult]) -> None:
    """Raise `LawBroken` for the first broken law; `AssertionError` where not one law held."""
    found = list(results)
    for result in found:
        if result.ok is False:
            raise LawBroken(result.law, f"{result.subject}: {result.detail}")
    if not any(result.ok for result in found):
        raise AssertionError("no law applied: nothing was tested")
