"""The service from Python: `Client`, and `AsyncClient` for asyncio.

    client = Client()
    digits = client.fit(A, nb_concepts=64, name="digits")
    Z = digits.encode(A)

Imports neither what the service is made of nor what it computes with.
"""

from app.client.answers import Encoded
from app.client.asynchronous import AsyncClient, AsyncDictionary, AsyncJob
from app.client.blocking import Client, Dictionary, Job
from app.client.errors import (
    BodyTooLarge,
    ClientClosed,
    DictserveError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    MalformedBody,
    NotFound,
    Overloaded,
    StillRunning,
    TimedOut,
    Unavailable,
    UnknownConcept,
    UnknownDictionary,
    UnknownJob,
    Unreachable,
    UnreadableAnswer,
)
from app.client.records import Progress

__all__ = [
    "AsyncClient",
    "AsyncDictionary",
    "AsyncJob",
    "BodyTooLarge",
    "Client",
    "ClientClosed",
    "Dictionary",
    "DictserveError",
    "Encoded",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobFailed",
    "MalformedBody",
    "NotFound",
    "Overloaded",
    "Progress",
    "StillRunning",
    "TimedOut",
    "Unavailable",
    "UnknownConcept",
    "UnknownDictionary",
    "UnknownJob",
    "Unreachable",
    "UnreadableAnswer",
]
