"""Servers as their users write them: `servers.py NAME PORT`.  Each answers with the SHA-256 of what it got, and with that.

None of them knows of shmstack.
"""
from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import Any


def answer(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + body


def wsgi(environ: Any, start: Any) -> list[bytes]:
    out = answer(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    start("200 OK", [("Content-Length", str(len(out)))])
    return [out]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    out = answer(body)
    length = (b"content-length", str(len(out)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": out})


def aiohttp(port: int) -> None:
    from aiohttp import web

    async def handle(request: Any) -> Any:
        return web.Response(body=answer(await request.read()))

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/", handle)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


def cheroot(port: int) -> None:
    from cheroot.wsgi import Server

    Server(("127.0.0.1", port), wsgi).safe_start()


def waitress(port: int) -> None:
    import waitress

    waitress.serve(wsgi, host="127.0.0.1", port=port, _quiet=True)


def eventlet(port: int) -> None:
    import eventlet
    from eventlet import wsgi as server

    server.server(eventlet.listen(("127.0.0.1", port)), wsgi, log_output=False)


def websockets(port: int) -> None:
    from websockets.asyncio.server import serve

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(answer(message))

    async def main() -> None:
        async with serve(echo, "127.0.0.1", port, max_size=None):
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())


def trio(port: int) -> None:
    import trio

    async def handle(stream: Any) -> None:
        head = b""
        while len(head) < 8:
            head += await stream.receive_some(8 - len(head))
        body, size = bytearray(), int.from_bytes(head, "big")
        while len(body) < size:
            body += await stream.receive_some(size - len(body))
        await stream.send_all(answer(bytes(body)))

    async def main() -> None:
        await trio.serve_tcp(handle, port, host="127.0.0.1")

    trio.run(main)


def rpyc(port: int) -> None:
    import rpyc

    class Service(rpyc.Service):                               # type: ignore[misc]
        def exposed_answer(self, body: bytes) -> bytes:
            return answer(body)

    rpyc.ThreadedServer(Service, hostname="127.0.0.1", port=port).start()


def distributed(port: int) -> None:
    from distributed.comm import CommClosedError, listen

    async def handle(comm: Any) -> None:
        try:
            while True:
                await comm.write(await comm.read())
        except CommClosedError:
            pass

    async def main() -> None:
        await listen(f"tcp://127.0.0.1:{port}", handle)
        await asyncio.get_running_loop().create_future()

    asyncio.run(main())


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]))
