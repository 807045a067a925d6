"""Keeps history: extracts hours that are over, reads them again as bills arrive, sums them up, cleans."""
