"""Clients as their users write them: `clients.py NAME PORT` sends bodies of 0 B to 3 MB, and checks each answer.

None of them knows of shmstack.
"""
from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import sys
from typing import Any

SIZES = (0, 1, 100, 5_000, 70_000, 400_000, 3_000_000)
_chance = random.Random(3)
BODIES = [_chance.randbytes(size) for size in SIZES * 6]


def check(body: bytes, got: bytes) -> None:
    assert got == hashlib.sha256(body).hexdigest().encode() + body, f"{len(got)} bytes in answer to {len(body)}"


def httpx(port: int) -> None:
    import httpx

    with httpx.Client(timeout=60) as client:
        for body in BODIES:
            check(body, client.post(f"http://127.0.0.1:{port}/", content=body).content)


def httpx_async(port: int) -> None:
    import httpx

    async def main() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            async def one(body: bytes) -> None:
                check(body, (await client.post(f"http://127.0.0.1:{port}/", content=body)).content)

            for start in range(0, len(BODIES), 6):
                await asyncio.gather(*map(one, BODIES[start:start + 6]))

    asyncio.run(main())


def requests(port: int) -> None:
    import requests

    with requests.Session() as session:
        for body in BODIES:
            check(body, session.post(f"http://127.0.0.1:{port}/", data=body, timeout=60).content)


def urllib3(port: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import urllib3

    pool = urllib3.PoolManager(maxsize=4)
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda body: pool.request("POST", f"http://127.0.0.1:{port}/", body=body).data, BODIES)
        for body, got in zip(BODIES, answers, strict=True):
            check(body, got)


def websockets(port: int) -> None:
    from websockets.asyncio.client import connect

    async def main() -> None:
        async with connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            for body in BODIES:
                await connection.send(body)
                check(body, await connection.recv())

    asyncio.run(main())


def plain(port: int) -> None:
    for body in BODIES:
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(len(body).to_bytes(8, "big") + body)
            got = bytearray()
            while part := sock.recv(1 << 16):
                got += part
            check(body, bytes(got))


def rpyc(port: int) -> None:
    import rpyc

    connection = rpyc.connect("127.0.0.1", port)
    for body in BODIES:
        check(body, connection.root.answer(body))
    connection.close()


def distributed(port: int) -> None:
    from distributed.comm import connect
    from distributed.protocol import to_serialize

    async def main() -> None:
        comm = await connect(f"tcp://127.0.0.1:{port}")
        for body in BODIES:
            await comm.write({"x": to_serialize(body)})
            got: Any = (await comm.read())["x"]
            assert bytes(getattr(got, "data", got)) == body
        await comm.close()

    asyncio.run(main())


def execnet(port: int) -> None:
    import execnet

    gateway = execnet.makegateway(f"socket=127.0.0.1:{port}")
    channel = gateway.remote_exec(
        "import hashlib\nfor body in channel: channel.send(hashlib.sha256(body).hexdigest().encode() + body)")
    for body in BODIES:
        channel.send(body)
        check(body, channel.receive())
    channel.close()
    execnet.default_group.terminate(5)


def redis(port: int) -> None:
    import redis

    store = redis.Redis(port=port)
    for number, body in enumerate(BODIES):
        store.set(f"k{number}", body)
        assert store.get(f"k{number}") == body


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]))
    print(len(BODIES))
