"""Metroculus' SDK."""

from optscale_client.metroculus_client.client import Client, Validator
from optscale_client.metroculus_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MetroculusError,
    NoSourceConfigured,
    NotFound,
    ServiceUnavailable,
    Unauthorized,
    error_about,
)

__all__ = [
    "Client",
    "DeadlineExceeded",
    "InvalidRequest",
    "MetroculusError",
    "NoSourceConfigured",
    "NotFound",
    "ServiceUnavailable",
    "Unauthorized",
    "Validator",
    "error_about",
]
