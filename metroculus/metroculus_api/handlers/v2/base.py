"""What Metroculus' handlers share: the cluster secret, the window, the deadline."""

from __future__ import annotations

from enum import Enum

from metroculus.codes import CODES, NO_SECRET, NO_SECRET_YET, WRONG_SECRET
from metroculus.metroculus_api.secret import SecretKeeper
from metroculus.sources.http import Deadline
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import Operation
from tools.tornado_service.params import WindowQuery, resolve_window
from tools.window import Window


class Needs(Enum):
    """What a caller must have."""

    CLUSTER_SECRET = "cluster secret"


class MetroculusHandler(ServiceHandler):
    """Refuses whoever does not know the cluster secret, before anything is read."""

    secret: SecretKeeper
    deadline_seconds: float

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        offered = self.request.headers.get_list("Secret")
        if not self.secret.known:
            raise ApiError(NO_SECRET_YET, retry_after=5)
        if not offered:
            raise ApiError(NO_SECRET)
        if len(offered) != 1 or not self.secret.accepts(offered[0].encode("latin-1", "replace")):
            raise ApiError(WRONG_SECRET)

    def deadline(self) -> Deadline:
        return Deadline(self.deadline_seconds, self.request_id)

    def window_of(self, query: WindowQuery) -> Window:
        return resolve_window(query, self.service.clock(), CODES)
