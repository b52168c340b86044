# SPDX-License-Identifier: Apache-2.0
"""uvicorn's access log, by a real uvicorn: without the console's questions, with all others."""

import logging
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from sglang_longflow.monitor.access_log import NoPolls


async def app(scope, receive, send):
    """Answers with the status in the query, else 200."""
    status = int(scope["query_string"].partition(b"status=")[2][:3] or 200)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def logged():
    """Sends requests through uvicorn; returns the lines of its access log."""
    logger = logging.getLogger("uvicorn.access")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    no_polls = NoPolls("/root/")
    logger.addFilter(no_polls)
    free = socket.create_server(("127.0.0.1", 0))
    # Its own configuration of the log comes after the filter was set, as in a server.
    server = uvicorn.Server(uvicorn.Config(app, log_level="info", lifespan="off"))
    logger.addHandler(handler)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{free.getsockname()[1]}"

    def send(*requests: str) -> list[str]:
        with httpx.Client(trust_env=False, timeout=300) as client:
            for method, path in (request.split() for request in requests):
                client.request(method, address + path)
        return [line.split('"')[1] + line.split('"')[2] for line in lines]

    yield send
    server.should_exit = True
    thread.join()
    logger.removeFilter(no_polls)
    logger.removeHandler(handler)


def test_what_watches_is_not_logged(logged):
    polls = ["/longflow", "/longflow/", "/longflow/stats?max_age_s=0", "/longflow/static/x.js"]
    polls += ["/longflow/stats?status=503", "/longflow/history?status=304", "/health"]
    polls += ["/health?status=503", "/root/longflow/stats", "/root/health"]
    kept = ["GET /longflow/stats?status=401", "GET /longflow/plan?status=400", "POST /longflow"]
    kept += ["GET /longflower", "GET /health?status=500", "GET /health_generate", "GET /v1/models"]
    kept += ["POST /generate?status=503", "HEAD /health"]
    # Nothing is hidden by the beginning of its path alone.
    kept += ["GET /longflow/a/b/c", "GET /longflow/%2e%2e/generate"]
    found = [line.split(" HTTP")[0] for line in logged(*(f"GET {p}" for p in polls), *kept)]
    assert found == [one.replace("%2e", ".") for one in kept]
