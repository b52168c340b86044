# SPDX-License-Identifier: Apache-2.0
"""What of /metrics a scraper gets, by the formats it accepts."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Gauge, make_asgi_app

from sglang_longflow.hooks.http import PlainMetrics

PROMETHEUS_2 = b"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
PROMETHEUS_3 = b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5"
LEGACY_NAMES = b"application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.5"


def scrape(app, path, accept):
    headers = [(b"accept", accept), (b"host", b"x")] if accept else [(b"host", b"x")]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    scope["query_string"] = b""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app(scope, receive, send))
    return b"".join(message.get("body", b"") for message in sent).decode()


@pytest.fixture
def metrics():
    registry = CollectorRegistry()
    Gauge("sglang:num_running_reqs", "Running.", registry=registry).set(3)
    return make_asgi_app(registry)


@pytest.mark.parametrize("accept", [b"", b"*/*", PROMETHEUS_2, PROMETHEUS_3, LEGACY_NAMES])
def test_names_keep_their_colon(metrics, accept):
    assert "\nsglang:num_running_reqs 3.0\n" in scrape(PlainMetrics(metrics), "/metrics", accept)


def test_without_it_they_do_not(metrics):
    """The reason for all this; where it fails, `PlainMetrics` can go."""
    assert "\nsglang_num_running_reqs 3.0\n" in scrape(metrics, "/metrics", PROMETHEUS_2)


def test_other_routes_are_left_alone():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["headers"][0])

    scrape(PlainMetrics(app), "/generate", PROMETHEUS_2)
    assert seen == [(b"accept", PROMETHEUS_2)]
