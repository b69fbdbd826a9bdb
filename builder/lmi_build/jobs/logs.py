"""The output of a job's hosts, read from CloudWatch as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build import events
from lmi_build.errors import LmiBuildError
from lmi_build.jobs.console import log_group
from lmi_build.jobs.faults import explained, is_absent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.events import Event
    from lmi_build.jobs.service import Service

# More streams than any job of ours has hosts.
_MAX_STREAMS = 500
_REFUSALS = frozenset({"job.denied", "remote.refused"})
# What a job is not left alone for: the next look brings the lines.
_PASSING = frozenset({"remote.throttled", "remote.server-error", "remote.unreachable"})
_MAX_FAILURES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """
    One line of one host.

    Args:
        host: As SageMaker names it, such as `algo-1`.
        timestamp_ms: When it arrived, in milliseconds since 1970.
        text: Without its end of line.
    """

    host: str
    timestamp_ms: int
    text: str

    @property
    def event(self) -> Event | None:
        """The event that the line is, or None for any other line."""
        if not self.text.startswith('{"event"'):
            return None
        try:
            return events.from_json(self.text)
        except (ValueError, TypeError):
            return None


class LogTail:
    """
    Reads each line of a job once.

    Args:
        service: Where the job runs.
        kind: The job's.
        name: The job's.
    """

    def __init__(self, service: Service, kind: str, name: str) -> None:
        self._service = service
        self._group = log_group(kind)
        self._prefix = f"{name}/"
        self._tokens: dict[str, str] = {}
        self._failures = 0
        # Why there are no logs, where they may not be read.
        self.refused: LmiBuildError | None = None

    def poll(self) -> list[LogLine]:
        """
        What came since the last call, in order of time.

        Raises:
            RemoteFailed: CloudWatch failed several times in a row.
        """
        if self.refused is not None:
            return []
        lines: list[LogLine] = []
        try:
            for stream in self._streams():
                # One after another: what was read stays when the next one fails.
                for line in self._read(stream):
                    lines.append(line)  # noqa: PERF402
            self._failures = 0
        except LmiBuildError as error:
            if error.code in _REFUSALS:
                # A role that may run jobs but not read logs can still wait for them.
                self.refused = error
            else:
                self._failures += 1
                if error.code not in _PASSING or self._failures > _MAX_FAILURES:
                    raise
        return sorted(lines, key=lambda line: line.timestamp_ms)

    def _streams(self) -> list[str]:
        from botocore.exceptions import ClientError

        with explained("looking for logs", self._service.region):
            pages = self._service.logs.get_paginator("describe_log_streams").paginate(
                logGroupName=self._group,
                logStreamNamePrefix=self._prefix,
                PaginationConfig={"MaxItems": _MAX_STREAMS},
            )
            try:
                return [
                    row["logStreamName"] for page in pages for row in page["logStreams"]
                ]
            except ClientError as error:
                if is_absent(error):
                    return []
                raise

    def _read(self, stream: str) -> Iterator[LogLine]:
        host = stream.removeprefix(self._prefix).rpartition("-")[0]
        while True:
            token = self._tokens.get(stream)
            with explained("reading logs", self._service.region):
                answer = self._service.logs.get_log_events(
                    logGroupName=self._group,
                    logStreamName=stream,
                    startFromHead=True,
                    **({"nextToken": token} if token else {}),
                )
            self._tokens[stream] = answer["nextForwardToken"]
            for row in answer["events"]:
                for text in str(row["message"]).splitlines() or [""]:
                    yield LogLine(host=host, timestamp_ms=row["timestamp"], text=text)
            # The service gives the same token again at the end of a stream.
            if answer["nextForwardToken"] == token or not answer["events"]:
                return
