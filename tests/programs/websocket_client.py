"""Talks to websocket_server.py through a sidecar. Usage: websocket_client.py SIDECAR_IP SIDECAR_PORT AUTHORITY"""

import asyncio
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

ip, port, authority = sys.argv[1:]


async def main():
    async with connect(f"ws://{authority}/chat", host=ip, port=int(port), proxy=None) as socket:
        for message in ["warp", "weft", "ü" * 1000, os.urandom(70_000)]:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 10) == message
        assert await asyncio.wait_for(await socket.ping(), 10) >= 0
    assert socket.close_code == 1000, socket.close_code
    try:
        async with connect(f"ws://no-such.{authority}/", host=ip, port=int(port), proxy=None):
            sys.exit("an upgrade at a host that does not exist was confirmed")
    except (InvalidStatus, OSError):
        pass
    print("all ok")


asyncio.run(main())
