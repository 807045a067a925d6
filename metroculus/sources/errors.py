"""Why a source could not answer; each kind has its own HTTP status, given in one place by the API."""

from __future__ import annotations

from collections.abc import Sequence


class SourceError(Exception):
    """A source failed. The text is safe to show: no URL, no secret, nothing of the upstream's body."""

    retry_after: int | None = None
    rank = 0
    """Of several failures the highest is told."""


class Unreachable(SourceError):
    """No connection, or the breaker is open."""

    retry_after = 5


class BreakerOpen(Unreachable):
    """The breaker is open."""


class BadAnswer(SourceError):
    """It answered, and the answer cannot be used: a status, a redirect, HTML, nonsense.

    Args:
        status: of the HTTP answer, where that is what was wrong with it.
    """

    rank = 2

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class TooLarge(BadAnswer):
    """The answer is larger than what is read of one; less may be asked for at once."""


class DeadlineExceeded(SourceError):
    """It did not answer in time."""

    rank = 1


SILENCE = (Unreachable, DeadlineExceeded)
"""Nobody is there, or nobody answers: what is asked next would wait as long."""


class SeveralClusters(SourceError):
    """The source knows more than one cluster, and the account does not say which of them it is."""

    rank = 3

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"the source knows several clusters: name one of {', '.join(names)}, or * for all")
        self.names = tuple(names)


class AddressRefused(SourceError):
    """The address is none that the operator allows."""


class NoSource(Exception):
    """The account has no source that could answer."""


class NoMetricsSource(NoSource):
    """The account has no source of metrics."""


class RegistryError(Exception):
    """The registry of sources or its key cannot be used; the text says what to do."""


class EntryUnreadable(RegistryError):
    """One entry of the registry cannot be read, or no key opens it; the others can."""
