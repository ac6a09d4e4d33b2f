"""asyncio: an echo over streams, unchanged, one connection and sixteen at a time, and large messages.

    client: writer.write, await reader.readexactly(size)  |---- size --->|  server: start_server,
            one task a connection                         |<--- size ----|  a task a connection

Most of a small round trip here is asyncio's own: the case with sixteen connections lets the loop
find several ready at a time.  A large message is answered in the pieces in which it comes, so both
directions are busy at once.  The same program runs over kernel TCP and under shmstack's launcher.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, launched
from perf.rates import Case, measure
from perf.rows import Options, Row, Say, human

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "asyncio"
SIZES = (64, 1 << 16, 1 << 20)
SMALL = 1024  # up to this size sixteen connections are measured too
READ = 1 << 18
MOST_CONNECTIONS = 16
WAIT_S = 30


def server(link: Link, _cfg: dict[str, Any]) -> None:
    """Echo on every connection; answer an order when its messages were seen."""
    loop = asyncio.new_event_loop()
    seen = due = 0
    progress = asyncio.Condition()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        while data := await reader.read(READ):
            writer.write(data)
            await writer.drain()
            seen += len(data)
            if seen >= due:
                async with progress:
                    progress.notify_all()

    async def take(size: int) -> None:
        nonlocal due
        due += size
        async with progress:
            await asyncio.wait_for(progress.wait_for(lambda: seen >= due), WAIT_S)

    listening = loop.run_until_complete(asyncio.start_server(echo, "127.0.0.1", 0))
    link.say(at=listening.sockets[0].getsockname()[1])
    # Let the client's connections be accepted: it opens them before the first order.  Between
    # orders the loop stands still, which no client notices, as it waits for an order too.
    loop.run_until_complete(asyncio.sleep(0.2))
    link.obey(lambda order: loop.run_until_complete(take(order["count"] * order["size"])))


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Ask on the ordered number of connections at a time."""
    loop = asyncio.new_event_loop()

    async def connect() -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return [await asyncio.open_connection("127.0.0.1", cfg["at"]) for _ in range(MOST_CONNECTIONS)]

    async def ask(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int, payload: bytes
    ) -> None:
        for _ in range(count):
            writer.write(payload)
            await reader.readexactly(len(payload))  # first: while a large one is read there is room for the rest
            await writer.drain()

    async def ask_all(order: dict[str, Any]) -> None:
        number, payload = order["connections"], b"x" * order["size"]
        shares = [order["count"] // number + (i < order["count"] % number) for i in range(number)]
        await asyncio.wait_for(
            asyncio.gather(*(ask(*end, share, payload) for end, share in zip(ends, shares, strict=False))), WAIT_S
        )

    ends = loop.run_until_complete(asyncio.wait_for(connect(), WAIT_S))
    link.say(ready=1)
    link.obey(lambda order: loop.run_until_complete(ask_all(order)))


def run(options: Options, say: Say) -> list[Row]:
    """Measure each size, and one connection as well as sixteen for small ones."""
    rows: list[Row] = []
    with Crew(options) as crew:
        pairs = launched(crew, "perf.aio")
        for size in options.sizes or SIZES:
            for number in (1, MOST_CONNECTIONS) if size <= SMALL else (1,):
                name = f"streams, {number} connection{'s' * (number > 1)}, {human(size)} echo"
                order = {"connections": number, "size": size}
                rows += measure(Case(NAME, name, order=order, size=size, first=64), pairs, options, say)
    return rows
