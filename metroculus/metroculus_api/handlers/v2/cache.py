"""``/metroculus/v2/cache_stats``."""

from __future__ import annotations

from metroculus.metroculus_api.cache import AnswerCache, CacheStats
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from tools.tornado_service.operation import NoQuery, operation


class CacheFigures(MetroculusHandler):
    """What the cache of answers holds, and how often it was asked."""

    cache: AnswerCache

    @operation(needs=Needs.CLUSTER_SECRET, answer=CacheStats)
    async def get(self, query: NoQuery) -> CacheStats:
        return self.cache.stats()
