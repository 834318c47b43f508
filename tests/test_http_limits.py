"""One visitor against the layer that leaves something for all others."""

import asyncio

import pytest

from bnft import http_limits
from bnft.http_limits import BURST, MOST_OPEN, REMEMBERED, HttpLimits


class Server:
    """What lies behind the layer: answers at once, or holds its streams until it is told to let go."""

    def __init__(self, holds=False):
        self.go, self.holds = asyncio.Event(), holds
        self.layer = HttpLimits(self)

    async def __call__(self, scope, receive, send):
        if self.holds:
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200})

    async def ask(self, method="POST", host="8.8.8.8"):
        told = []

        async def send(message):
            told.append(message)

        scope = {"type": "http", "method": method, "path": "/", "headers": [], "client": (host, 1)}
        await self.layer(scope, None, send)
        return told[0]["status"]


def answers(server, count, **more):
    async def ask():
        return [await server.ask(**more) for _ in range(count)]

    return asyncio.run(ask())


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(http_limits, "time", Clock())
    return http_limits.time


def test_a_flood_is_refused_and_only_its_own_visitor(clock):
    server = Server()
    assert answers(server, BURST + 5) == [200] * BURST + [429] * 5
    assert answers(server, 3, method="GET") == [200] * 3, "reading costs nothing"
    assert answers(server, 3, host="9.9.9.9") == [200] * 3
    clock.now += 0.25
    assert answers(server, 4) == [200, 200, 429, 429], "ten a second come back"
    clock.now += 3600
    assert answers(server, BURST + 1).count(429) == 1, "never more than at once"


def test_open_streams_are_counted_and_forgotten():
    async def hold():
        server = Server(holds=True)
        streams = [asyncio.create_task(server.ask("GET")) for _ in range(MOST_OPEN)]
        await asyncio.sleep(0)
        assert await server.ask("GET") == 429
        streams.pop().cancel()
        server.go.set()
        assert set(await asyncio.gather(*streams)) == {200}
        assert await server.ask("GET") == 200
        assert server.layer._visitors["8.8.8.8"].open == 0

    asyncio.run(hold())


def test_only_so_many_visitors_are_remembered():
    server = Server()

    async def ask():
        for i in range(REMEMBERED + 10):
            await server.ask(host=f"8.{i >> 16}.{i >> 8 & 255}.{i & 255}")

    asyncio.run(ask())
    assert len(server.layer._visitors) == REMEMBERED
