"""asyncio: an echo over streams, unchanged, one connection and sixteen at a time.

    client: await writer.drain(), reader.readexactly(64)   |---- 64 B --->|  server: start_server,
            one task a connection                          |<--- 64 B ----|  a task a connection

Most of a round trip here is asyncio's own: the case with sixteen connections lets the loop find
several ready at a time.  The same program runs over kernel TCP and under shmstack's launcher.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, launched
from perf.rates import Case, measure
from perf.rows import Options, Row, Say

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "asyncio"
SIZE = 64
MOST_CONNECTIONS = 16
WAIT_S = 30


def server(link: Link, _cfg: dict[str, Any]) -> None:
    """Echo on every connection; answer an order when its messages were seen."""
    loop = asyncio.new_event_loop()
    seen = due = 0
    progress = asyncio.Condition()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        while data := await reader.read(SIZE):
            writer.write(data)
            await writer.drain()
            seen += len(data)
            if seen >= due:
                async with progress:
                    progress.notify_all()

    async def take(count: int) -> None:
        nonlocal due
        due += count * SIZE
        async with progress:
            await asyncio.wait_for(progress.wait_for(lambda: seen >= due), WAIT_S)

    listening = loop.run_until_complete(asyncio.start_server(echo, "127.0.0.1", 0))
    link.say(at=listening.sockets[0].getsockname()[1])
    # Let the client's connections be accepted: it opens them before the first order.  Between
    # orders the loop stands still, which no client notices, as it waits for an order too.
    loop.run_until_complete(asyncio.sleep(0.2))
    link.obey(lambda order: loop.run_until_complete(take(order["count"])))


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Ask on the ordered number of connections at a time."""
    loop = asyncio.new_event_loop()

    async def connect() -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return [await asyncio.open_connection("127.0.0.1", cfg["at"]) for _ in range(MOST_CONNECTIONS)]

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
        payload = b"x" * SIZE
        for _ in range(count):
            writer.write(payload)
            await writer.drain()
            await reader.readexactly(SIZE)

    async def ask_all(order: dict[str, Any]) -> None:
        number = order["connections"]
        shares = [order["count"] // number + (i < order["count"] % number) for i in range(number)]
        await asyncio.wait_for(
            asyncio.gather(*(ask(*end, share) for end, share in zip(ends, shares, strict=False))), WAIT_S
        )

    ends = loop.run_until_complete(asyncio.wait_for(connect(), WAIT_S))
    link.say(ready=1)
    link.obey(lambda order: loop.run_until_complete(ask_all(order)))


def run(options: Options, say: Say) -> list[Row]:
    """Measure one and sixteen connections."""
    rows: list[Row] = []
    with Crew(options) as crew:
        pairs = launched(crew, "perf.aio")
        for number in (1, MOST_CONNECTIONS):
            name = f"streams, {number} connection{'s' * (number > 1)}, 64 B echo"
            rows += measure(Case(NAME, name, order={"connections": number}, size=SIZE), pairs, options, say)
    return rows
