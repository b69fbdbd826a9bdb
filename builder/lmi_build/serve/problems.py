"""Refusals: what a client did wrong, as a status and a sentence."""

from __future__ import annotations


class Refused(Exception):
    """
    A request that gets a 4xx or 503 answer.

    Args:
        message: What is wrong, with numbers.
        status: HTTP status.
        code: Short machine-readable reason.
        param: Dotted name of the field at fault, when there is one.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
