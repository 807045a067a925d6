"""What tenants push: the upstream's own answers, kept until the hours that they tell are stored and settled.

An answer is pieces of its body and one row that says how many there are, written last: it is there whole or not at all.
Of two answers to one question the one that was asked for later counts, whichever came first.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from metroculus.storage.columns import PUSH_ANSWERS, PUSH_PIECES, PUSH_TAKEN
from metroculus.storage.engine import Engine, StoreError, alter, literal, moment, numbers
from metroculus.storage.ledger import COUNTER_BITS
from tools.window import DAY

Kind = Literal["allocation", "assets"]
Step = Literal["hour", "day"]

PIECE_BYTES = 3 << 18
"""Of a body in one row; it is written as base64, which is a third longer."""
KEPT_SECONDS = 9 * DAY
"""What was taken is kept until its hours are closed and can no longer be restated."""
ORPHANED_SECONDS = DAY


class PiecesLost(StoreError):
    """Some of an answer's body is not there any more."""


class PushedAnswer(Struct, frozen=True, kw_only=True):
    """One answer of a tenant's upstream about ``[first, last)``, without its body."""

    account: str
    kind: Kind
    step: Step
    first: int
    last: int
    answer: int
    """Its own number."""
    asked_at: int
    """When it was asked for, by our own clock: what counts where two answers are about the same time."""
    received_at: int
    digest: str
    """SHA-256 of the unpacked body, hexadecimal."""
    pieces: int
    bytes: int
    """Of the packed body."""
    form: str
    """Of assets: ``list`` (Kubecost) or ``object`` (OpenCost); empty where it cannot be told."""
    told: tuple[int, ...]
    """The hours that it tells, by their first second."""
    currency: str = ""
    """Of its money, as the upstream's configuration says; empty where it does not."""
    clusters: tuple[str, ...] = ()
    """Whose rows it has, where they say so."""

    @property
    def tells_hours(self) -> bool:
        """Whether it tells what hours cost, one by one."""
        return (self.kind, self.step) == ("allocation", "hour")

    @property
    def question(self) -> tuple[str, str, int, int]:
        return self.kind, self.step, self.first, self.last


class Inbox:
    """The answers that were pushed; every method blocks and raises StoreError."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def put(self, answer: PushedAnswer, packed: bytes) -> None:
        """Keep an answer; it is durable, and whole, when this returns.

        Args:
            packed: its body as gzip.
        """
        for number, begin in enumerate(range(0, len(packed), PIECE_BYTES)):
            text = base64.b64encode(packed[begin : begin + PIECE_BYTES]).decode()
            row = (answer.account, answer.first, answer.answer, number, text)
            self._engine.insert(PUSH_PIECES.name, PUSH_PIECES.names, [row])
        self._write(answer)

    def ask_again(self, answer: PushedAnswer, asked_at: int, received_at: int) -> None:
        """Note that an answer was given once more, to a later question."""
        self._write(replace(answer, asked_at=asked_at, received_at=received_at))

    def _write(self, answer: PushedAnswer) -> None:
        values = [getattr(answer, name) for name in PUSH_ANSWERS.names]
        for name in ("told", "clusters"):
            values[PUSH_ANSWERS.names.index(name)] = list(getattr(answer, name))
        self._engine.insert(PUSH_ANSWERS.name, PUSH_ANSWERS.names, [values])

    def newest(self, account: str, kind: Kind, step: Step, first: int, last: int) -> PushedAnswer | None:
        """Of the answers to one question the one that counts."""
        here = (
            f"first = {moment(first)} AND last = {moment(last)} AND kind = {literal(kind)} AND step = {literal(step)}"
        )
        return max(self._read(f"account = {literal(account)} AND {here}"), key=_by_age, default=None)

    def overlapping(self, account: str, start: int, end: int) -> list[PushedAnswer]:
        """The answers about some of ``[start, end)``, those that count first."""
        return self._ordered(account, f"first < {moment(end)} AND last > {moment(start)} AND {_near(start)}")

    def waiting(self, account: str) -> list[PushedAnswer]:
        """The answers that nobody has taken yet, those that count first."""
        return self._ordered(account, f"(answer, asked_at) NOT IN ({_taken(account)})")

    def waiting_accounts(self) -> list[str]:
        """The accounts of which there are answers that nobody has taken yet."""
        rows = self._engine.rows(
            f"SELECT DISTINCT account FROM {PUSH_ANSWERS.name} WHERE (answer, asked_at) NOT IN"
            f" (SELECT answer, asked_at FROM {PUSH_TAKEN.name})"
        )
        return sorted(str(row["account"]) for row in rows)

    def assets_form(self, account: str) -> str:
        """How the last assets of an account were told; empty where none were."""
        return self._last(account, "form")

    def assets_forms(self) -> dict[str, str]:
        """``assets_form`` of every account that has one, in one question.

        Raises:
            StoreError
        """
        rows = self._engine.rows(
            f"SELECT account, argMax(form, asked_at) AS latest FROM {PUSH_ANSWERS.name}"
            " WHERE form != '' GROUP BY account"
        )
        return {str(row["account"]): str(row["latest"]) for row in rows}

    def currency(self, account: str) -> str:
        """What money the account's last answers are in; empty where none says it."""
        return self._last(account, "currency")

    def clusters(self, account: str, since: int) -> tuple[str, ...]:
        """Of which clusters the last answer of an account was that says so and was received since then.

        Raises:
            StoreError
        """
        where = f"account = {literal(account)} AND length(clusters) > 0 AND received_at >= {since}"
        rows = list(
            self._engine.rows(
                f"SELECT clusters FROM {PUSH_ANSWERS.name} WHERE {where} ORDER BY received_at DESC, answer DESC LIMIT 1"
            )
        )
        return tuple(map(str, rows[0]["clusters"])) if rows else ()

    def _last(self, account: str, column: str) -> str:
        """The text of the last answer that has one."""
        where = f"account = {literal(account)} AND {column} != ''"
        rows = list(
            self._engine.rows(f"SELECT argMax({column}, asked_at) AS latest FROM {PUSH_ANSWERS.name} WHERE {where}")
        )
        return str(rows[0]["latest"]) if rows else ""

    def whole(self, answer: PushedAnswer) -> bool:
        """Whether all pieces of an answer are there."""
        here = f"account = {literal(answer.account)} AND first = {moment(answer.first)} AND answer = {answer.answer}"
        rows = list(self._engine.rows(f"SELECT count() AS there FROM {PUSH_PIECES.name} WHERE {here}"))
        return int(rows[0]["there"]) == answer.pieces

    def size(self, account: str) -> int:
        """Bytes that are kept of an account."""
        each = f"SELECT answer, max(bytes) AS one FROM {PUSH_ANSWERS.name} WHERE account = {literal(account)}"
        rows = list(self._engine.rows(f"SELECT sum(one) AS size FROM ({each} GROUP BY answer)"))
        return int(rows[0]["size"] or 0)

    def packed(self, answer: PushedAnswer) -> bytes:
        """The body of an answer as gzip.

        Raises:
            PiecesLost, StoreError
        """
        pieces = self._pieces_of([answer])[answer.answer]
        if len(pieces) != answer.pieces:
            raise PiecesLost(f"{answer.pieces - len(pieces)} pieces of a pushed answer are lost")
        return b"".join(pieces)

    def packed_of(self, answers: Sequence[PushedAnswer]) -> dict[int, bytes]:
        """``packed`` of answers of one account by their numbers, with one question; without those that lost pieces.

        Raises:
            StoreError
        """
        found = self._pieces_of(answers)
        return {one.answer: b"".join(found[one.answer]) for one in answers if len(found[one.answer]) == one.pieces}

    def _pieces_of(self, answers: Sequence[PushedAnswer]) -> dict[int, list[bytes]]:
        """The pieces that are there, in their order, by the number of their answer."""
        pieces: dict[int, dict[int, bytes]] = {one.answer: {} for one in answers}
        begins = [one.first for one in answers]
        for row in self._engine.rows(
            f"SELECT answer, number, body FROM {PUSH_PIECES.name} WHERE account = {literal(answers[0].account)}"
            f" AND first >= {moment(min(begins))} AND first <= {moment(max(begins))}"
            f" AND answer IN ({numbers(list(pieces))})"
        ):
            pieces[int(row["answer"])][int(row["number"])] = base64.b64decode(row["body"])
        return {answer: [found[number] for number in sorted(found)] for answer, found in pieces.items()}

    def take(self, answers: Iterable[PushedAnswer]) -> None:
        """Note that what these tell is stored as far as it can be."""
        now = int(self._clock())
        rows = [(one.account, one.first, one.answer, one.asked_at, now) for one in answers]
        self._engine.insert(PUSH_TAKEN.name, PUSH_TAKEN.names, rows)

    def sweep(self, now: int) -> int:
        """Remove what is settled, what a later answer replaced, and pieces that no answer has.

        Returns:
            how many answers went.

        Raises:
            StoreError
        """
        gone: dict[str, list[PushedAnswer]] = {}
        for account in self.accounts():
            taken = {(int(row["answer"]), int(row["asked_at"])) for row in self._engine.rows(_taken(account))}
            told: dict[tuple[str, str, int, int], set[int]] = {}
            for one in self._ordered(account, "1"):
                settled = one.last < now - KEPT_SECONDS and one.received_at < now - KEPT_SECONDS
                later = told.setdefault(one.question, set())
                replaced = bool(later) and later.issuperset(one.told) and one.received_at < now - ORPHANED_SECONDS
                later.update(one.told)
                if (one.answer, one.asked_at) in taken and (settled or replaced):
                    gone.setdefault(account, []).append(one)
        for account, answers in gone.items():
            named = f"account = {literal(account)} AND answer IN ({numbers([one.answer for one in answers])})"
            for table in (PUSH_ANSWERS, PUSH_PIECES, PUSH_TAKEN):
                alter(self._engine, table.name, f"DELETE WHERE {named}")
        old = (now - ORPHANED_SECONDS) << COUNTER_BITS
        orphans = f"answer < {old} AND answer NOT IN (SELECT answer FROM {PUSH_ANSWERS.name})"
        lost = [int(row["answer"]) for row in self._engine.rows(
            f"SELECT DISTINCT answer FROM {PUSH_PIECES.name} WHERE {orphans}"
        )]  # fmt: skip
        if lost:
            alter(self._engine, PUSH_PIECES.name, f"DELETE WHERE answer IN ({numbers(lost)})")
        return sum(map(len, gone.values()))

    def heard(self) -> dict[str, int]:
        """By account, when an answer of it was received last (Unix seconds).

        Raises:
            StoreError
        """
        rows = self._engine.rows(
            f"SELECT account, max(received_at) AS latest FROM {PUSH_ANSWERS.name} GROUP BY account"
        )
        return {str(row["account"]): int(row["latest"]) for row in rows}

    def accounts(self) -> list[str]:
        """Those of which there are answers."""
        return [str(row["account"]) for row in self._engine.rows(f"SELECT DISTINCT account FROM {PUSH_ANSWERS.name}")]

    def _ordered(self, account: str, where: str) -> list[PushedAnswer]:
        return sorted(self._read(f"account = {literal(account)} AND {where}"), key=_by_age, reverse=True)

    def _read(self, where: str) -> Sequence[PushedAnswer]:
        columns = ", ".join(
            f"toUInt32({name}) AS {name}_at" if name in ("first", "last") else name for name in PUSH_ANSWERS.names
        )
        found: dict[int, PushedAnswer] = {}
        for row in self._engine.rows(f"SELECT {columns} FROM {PUSH_ANSWERS.name} WHERE {where}"):
            one = PushedAnswer(
                **{name: value for name, value in row.items() if name not in ("first_at", "last_at", "told")},
                first=row["first_at"],
                last=row["last_at"],
                told=tuple(row["told"]),
            )
            if one.answer not in found or found[one.answer].asked_at < one.asked_at:
                found[one.answer] = one
        return list(found.values())


def _by_age(answer: PushedAnswer) -> tuple[int, int]:
    """Later answers have higher ones."""
    return answer.asked_at, answer.answer


def _near(start: int) -> str:
    """The condition by which the engine passes over other months: an answer is of one day at most."""
    return f"first >= {moment(max(0, start - DAY))}"


def _taken(account: str) -> str:
    """SQL of an account's answers that were taken: one that was given again to a later question counts anew."""
    return f"SELECT answer, asked_at FROM {PUSH_TAKEN.name} WHERE account = {literal(account)}"
