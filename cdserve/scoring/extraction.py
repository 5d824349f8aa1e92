"""Extractors: the answer in the text of a finished response, for votes.

Answers are compared as strings. Numbers are normalised, so that 1,000 and 1000.0 are one answer.
"""

import asyncio
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Protocol

import regex

from cdserve.config import BUILT_IN_EXTRACTORS
from cdserve.errors import PolicyError, RewardFailure, ScoringError, safe_repr
from cdserve.failures import Details, log_failure
from cdserve.policy import FIELD, NAME
from cdserve.scoring.functions import Threads, imported

PATTERN_SECONDS = 1.0
"""Processor time of a client's regular expression on one response, in seconds."""
FUNCTION_SECONDS = 30.0
"""Time of an operator's function on one response, in seconds."""

_NUMBER = re.compile(
    r"(?<![\w.])([-+−]?)[$€£]?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)([eE][-+]?\d{1,3})?"
)
"""Sign, digits and exponent of a number that does not begin inside a word or another number."""
_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_PRECISION = Context(prec=1000, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""Precision that numbers are compared with, in significant digits."""


class Extractor(Protocol):
    """Finds answers."""

    @abstractmethod
    async def find(self, text: str, request_id: str = "") -> str | None:
        """The answer in a response's text; None if there is none.

        Args:
            text: the response.
            request_id: id of the request in the log.

        Raises:
            TimeoutError: the client's regular expression takes too long.
            ScoringError: the operator's function failed.
        """
        ...


class BuiltIn(Extractor):
    """An extractor whose time is linear in the text, called inline."""

    def __init__(self, function: Callable[[str], str | None]) -> None:
        self._function = function

    async def find(self, text: str, request_id: str = "") -> str | None:
        return self._function(text)


class Pattern(Extractor):
    """Last match of a client's regular expression, whose only group is the answer.

    Args:
        pattern: the expression.
        threads: run it; shared by all requests.
    """

    def __init__(self, pattern: str, threads: Threads) -> None:
        self._pattern = regex.compile(pattern, cache_pattern=False)  # the cache would be clients'
        self._threads = threads

    async def find(self, text: str, request_id: str = "") -> str | None:
        return await self._threads.run(lambda: self._find(text))

    def _find(self, text: str) -> str | None:
        # The standard library's ``re`` has no timeout. ``concurrent`` lets other threads run.
        found = None
        for match in self._pattern.finditer(text, timeout=PATTERN_SECONDS, concurrent=True):
            found = match[1]
        return _stripped(found)


class Function(Extractor):
    """An operator's function from the response's text to its answer, called in threads.

    Args:
        name: name in the settings.
        function: the function.
        details: recipient of the text of an exception.
    """

    def __init__(self, name: str, function: Callable[[str], object], details: Details) -> None:
        self._name = name
        self._function = function
        self._details = details
        self._threads = Threads()

    async def find(self, text: str, request_id: str = "") -> str | None:
        try:
            return await self._answer(text)
        except Exception as error:  # the operator's function may raise anything
            subject = f"extractor {self._name!r}"
            message = log_failure(subject, error, self._details, request_id)
            raise ScoringError(message) from error

    async def _answer(self, text: str) -> str | None:
        try:
            async with asyncio.timeout(FUNCTION_SECONDS) as clock:
                answer = await self._threads.run(lambda: self._function(text))
        except TimeoutError as error:
            if not clock.expired():  # raised by the function itself
                raise
            reason = f"took longer than {FUNCTION_SECONDS:g} s"
            raise RewardFailure(reason) from error
        if not isinstance(answer, str | None):
            raise RewardFailure(f"returned {type(answer).__name__}; it may return a string or None")
        return _stripped(answer)


def last_number(text: str) -> str | None:
    """The last number of a text, normalised; signs of currency and percent are left out."""
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return None if last is None else _normalised(*last.groups(default=""))


def _normalised(sign: str, digits: str, exponent: str) -> str:
    """A number without commas, needless zeros and exponent: ``-1,000.50`` is ``-1000.5``."""
    written = f"{'' if sign == '+' else sign.replace('−', '-')}{digits.replace(',', '')}{exponent}"
    number = Decimal(written).normalize(_PRECISION)
    return format(number if number else Decimal(0), "f")


def boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}``, which may have braces inside.

    A content that is a number is normalised; in others, white space is collapsed.
    """
    opened: list[tuple[int, int] | None] = []  # start of the box and of its content; None: a brace
    last = (-1, 0, 0)
    for match in _BRACES.finditer(text):
        token = match[0]
        if token in ("\\{", "\\}"):
            continue
        if token != "}":
            opened.append(None if token == "{" else match.span())
        elif opened and (box := opened.pop()) is not None:
            last = max(last, (*box, match.start()))
    if last[0] < 0:
        return None
    content = " ".join(text[last[1] : last[2]].split())
    plain = re.sub(r"\\?[$%]", "", content).strip()
    if number := _NUMBER.fullmatch(plain):
        return _normalised(*number.groups(default=""))
    return content or None


def _stripped(answer: str | None) -> str | None:
    """An answer without white space around it; None if nothing is left."""
    return (answer or "").strip() or None


_BUILT_IN: Mapping[str, Callable[[str], str | None]] = dict(
    zip(BUILT_IN_EXTRACTORS, (last_number, boxed), strict=True)
)


class Extractors:
    """The server's extractors by name; makes those of clients' regular expressions.

    Args:
        by_name: the built-in extractors and the operator's.
    """

    def __init__(self, by_name: Mapping[str, Extractor]) -> None:
        self._by_name = by_name
        self._pattern_threads = Threads()

    @classmethod
    def load(cls, settings: Mapping[str, str], details: Details) -> "Extractors":
        """Loads the operator's functions.

        Args:
            settings: name and ``module:function`` of each.
            details: recipient of the text of a function's exception.

        Raises:
            ConfigError: a function cannot be imported or is not callable.
        """
        by_name: dict[str, Extractor] = {name: BuiltIn(find) for name, find in _BUILT_IN.items()}
        for name, path in settings.items():
            by_name[name] = Function(name, imported(f"extractors.{name}", path), details)
        return cls(by_name)

    @property
    def names(self) -> list[str]:
        """Names of the extractors."""
        return list(self._by_name)

    def of(self, extract: str) -> Extractor:
        """The extractor of a policy.

        Args:
            extract: a name, or a regular expression that the policy has checked.

        Raises:
            PolicyError: no extractor has this name, or the pattern cannot be compiled.
        """
        field = f"{FIELD}.selection.vote.extract"
        if NAME.fullmatch(extract):
            if extract not in self._by_name:
                raise PolicyError(
                    field,
                    f"is {safe_repr(extract)}; this server has {', '.join(map(repr, self.names))}, "
                    "and takes regular expressions with one group",
                )
            return self._by_name[extract]
        try:
            return Pattern(extract, self._pattern_threads)
        except regex.error as error:
            detail = f"is {safe_repr(extract)}; it is not a regular expression: {error}"
            raise PolicyError(field, detail) from error
