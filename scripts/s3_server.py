"""
Run an S3 server on this machine until it is told to stop.

Prints one line of JSON, `{"url": "http://127.0.0.1:PORT"}`, on standard output. Ends
when its standard input ends or on SIGTERM or SIGINT; what it holds is in memory.

Usage: s3_server.py [--bucket NAME]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading

from moto.moto_server.threaded_moto_server import ThreadedMotoServer


def main() -> int:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="A local S3 server, in memory.")
    parser.add_argument("--bucket", help="create this bucket first")
    arguments = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    # A line for every request would drown what the user came to see.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    if arguments.bucket:
        _create_bucket(url, arguments.bucket)
    print(json.dumps({"url": url}), flush=True)
    threading.Thread(target=_wait_for_end, args=(stopped,), daemon=True).start()
    stopped.wait()
    server.stop()
    return 0


def _create_bucket(url: str, bucket: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 -- the server checks none
    )
    client.create_bucket(Bucket=bucket)
    client.close()


def _wait_for_end(stopped: threading.Event) -> None:
    # Below the buffered layer: its lock, held here, would abort the end on a signal.
    while os.read(sys.stdin.fileno(), 1):
        pass
    stopped.set()


if __name__ == "__main__":
    sys.exit(main())
