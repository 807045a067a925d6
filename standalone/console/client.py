"""The REST API as the command line asks it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import requests

from standalone.console.profiles import Profile

TIMEOUT_SECONDS = 60.0
FILE_SECONDS = 620.0
"""Between two parts of a file; the service takes ten minutes for a whole one at most."""
CHUNK_BYTES = 1 << 16
MOST_BYTES = 256 << 20
Json = dict[str, Any]


class ApiFailure(Exception):
    """The API did not answer, or refused; the text says what to do."""


class RestApi:
    """Questions with one profile's token."""

    def __init__(self, profile: Profile) -> None:
        self._base = f"{profile.url.rstrip('/')}/restapi/v2/"
        self._url = profile.url
        self._session = requests.Session()
        self._session.trust_env = False  # no netrc: its password would take the token's place
        self._session.headers["Authorization"] = f"Bearer {profile.token}"
        self._verify = profile.ca or True

    def get(self, path: str, **query: Any) -> Json:
        """Raises: ApiFailure"""
        answer = self._ask(path, query, TIMEOUT_SECONDS, stream=True)
        try:
            body = json.loads(_read(answer))
        except ValueError:
            raise ApiFailure(f"{self._url} answers with something else than JSON: is it the REST API?") from None
        if not isinstance(body, dict):
            raise ApiFailure(f"{self._url} answers with something else: is it the REST API?")
        return body

    def download(self, path: str, **query: Any) -> Iterator[bytes]:
        """The parts of a file.

        Raises:
            ApiFailure: also where it ends before its end.
        """
        answer = self._ask(path, query, FILE_SECONDS, stream=True)
        if not answer.headers.get("Content-Type", "").startswith("text/csv"):
            raise ApiFailure(f"{self._url} answers with something else than CSV: is it the REST API?")
        try:
            yield from answer.iter_content(CHUNK_BYTES)
        except requests.RequestException as problem:
            raise ApiFailure(f"the file was cut before its end: {_short(problem)}") from None
        finally:
            answer.close()

    def _ask(self, path: str, query: Mapping[str, Any], seconds: float, stream: bool = False) -> requests.Response:
        asked = {name: value for name, value in query.items() if value not in (None, (), [])}
        try:
            answer = self._session.get(
                self._base + path,
                params=asked,
                timeout=(5.0, seconds),
                verify=self._verify,
                stream=stream,
                allow_redirects=False,
            )
        except requests.RequestException as problem:
            raise ApiFailure(f"{self._url} cannot be reached: {_short(problem)}") from None
        except OSError as problem:  # the authority's file cannot be read
            raise ApiFailure(f"{self._url} cannot be asked: {problem}") from None
        if answer.status_code != 200:
            raise ApiFailure(_refusal(answer, self._url))
        return answer


def _read(answer: requests.Response) -> bytes:
    """A whole answer, of a size and in a time that a REST API of ours takes.

    Raises:
        ApiFailure
    """
    ends, parts, size = time.monotonic() + TIMEOUT_SECONDS, [], 0
    try:
        for part in answer.iter_content(CHUNK_BYTES):
            size += len(part)
            if size > MOST_BYTES or time.monotonic() > ends:
                raise ApiFailure("the answer is too large, or takes too long: ask for less, or --output csv")
            parts.append(part)
    except requests.RequestException as problem:
        raise ApiFailure(f"the answer was cut: {_short(problem)}") from None
    finally:
        answer.close()
    return b"".join(parts)


def _refusal(answer: requests.Response, url: str) -> str:
    try:
        error = json.loads(_read(answer))["error"]
        text = f"{error['reason']} ({error['error_code']})"
    except (ValueError, KeyError, TypeError):
        return f"{url} answers with HTTP {answer.status_code}: is it the REST API?"
    if answer.status_code == 401:
        return f"{url} does not take the token: metroculus login --url {url}"
    retry = answer.headers.get("Retry-After")
    return f"{text}; try again in {retry} s" if retry else text


def _short(problem: BaseException) -> str:
    """What failed, without the objects that failed."""
    reason = getattr(problem.args[0], "reason", problem) if problem.args else problem
    text = str(reason)
    return text.rsplit(": ", 1)[-1] if ">: " in text else text


def one_of(kind: str, wanted: str | None, known: list[Json], id_key: str) -> Json:
    """The one thing of a kind that is meant: the one there is, or the one with that id or name.

    Raises:
        ApiFailure: there is none, or it takes a name to tell which.
    """
    names = ", ".join(sorted(str(one["name"]) for one in known)) or "none"
    if wanted is None:
        if len(known) == 1:
            return known[0]
        raise ApiFailure(f"which {kind}? --{kind} is one of: {names}")
    found = [one for one in known if wanted in (one[id_key], one["name"])]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(one[id_key]) for one in found)
        raise ApiFailure(f"several have the name {wanted}: give --{kind} one of the ids {ids}")
    raise ApiFailure(f"there is no {kind} {wanted}; there are: {names}")
