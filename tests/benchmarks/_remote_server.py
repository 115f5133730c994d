"""A web server on loopback that delays each request and limits each connection and the link.

    python _remote_server.py DIRECTORY DELAY CONNECTION LINK

It prints its port. ``/stats`` gives the bytes and requests since it was last asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

BLOCK = 1 << 18


class Link:
    """Deals out bytes per second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at = rate, 0.0

    async def send(self, n_bytes: int) -> None:
        """Wait until these bytes may be sent."""
        now = time.monotonic()
        self.free_at = max(now - 0.02, self.free_at) + n_bytes / self.rate
        if self.free_at > now:
            await asyncio.sleep(self.free_at - now)


async def main(root: Path, delay: float, connection: float, rate: float) -> None:
    """Serve a directory until killed."""
    link, sent = Link(rate), [0, 0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = Link(connection)
        try:
            while request := await reader.readline():
                headers = {}
                while line := (await reader.readline()).decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                method, path, _ = request.decode().split()
                if path == "/stats":
                    answer = json.dumps(sent).encode()
                    sent[:] = 0, 0
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
                    continue
                await asyncio.sleep(delay)
                file = root / path.lstrip("/")
                if not file.is_file():
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                size = file.stat().st_size
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
                begin, end = (int(asked[1]), int(asked[2] or size - 1) + 1) if asked else (0, size)
                end = min(end, size)
                status = f"206 Partial Content\r\nContent-Range: bytes {begin}-{end - 1}/{size}" if asked else "200 OK"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Length: {end - begin}\r\nAccept-Ranges: bytes\r\n"
                    "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n".encode()
                )
                if method == "HEAD":
                    continue
                sent[1] += 1
                with file.open("rb") as data:
                    data.seek(begin)
                    left = end - begin
                    while left:
                        block = data.read(min(BLOCK, left))
                        await own.send(len(block))
                        await link.send(len(block))
                        writer.write(block)
                        await writer.drain()
                        left -= len(block)
                        sent[0] += len(block)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *map(float, sys.argv[2:5])))
