"""A WebSocket echo. Usage: websocket_server.py ADDRESS PORT"""

import asyncio
import sys

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    async with serve(echo, sys.argv[1], int(sys.argv[2])) as server:
        print("listening", flush=True)
        await server.serve_forever()


asyncio.run(main())
