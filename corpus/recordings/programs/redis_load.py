"""A load for a Redis server, as the RFC's measurement used one: writes, and snapshots (BGSAVE) while they go on.

usage: redis_load.py SOCKET [ROUNDS]    (speaks the protocol itself: no package is needed)
"""

import random
import socket
import sys
import time


def connect(path: str) -> socket.socket:
    """The server may still be starting."""
    for _ in range(300):
        try:
            server = socket.socket(socket.AF_UNIX)
            server.connect(path)
            return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"no server at {path}")


def command(*words: str) -> bytes:
    """One command in the protocol's form."""
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


def main() -> None:
    server = connect(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    replies = server.makefile("rb")
    draw = random.Random(1)
    for number in range(rounds):
        pipeline = []
        for _ in range(1000):
            key = f"key:{draw.randrange(20000)}"
            kind = draw.randrange(8)
            if kind < 4:
                pipeline.append(command("SET", key, "x" * draw.randrange(10, 2000)))
            elif kind < 6:
                pipeline.append(
                    command("APPEND", f"log:{draw.randrange(50)}", "y" * draw.randrange(100, 20000))
                )
            elif kind < 7:
                pipeline.append(command("RPUSH", f"list:{draw.randrange(20)}", "z" * draw.randrange(10, 500)))
            else:
                pipeline.append(command("DEL", key, f"log:{draw.randrange(400)}"))
        if number % 8 == 4:
            pipeline.append(command("BGSAVE"))
        server.sendall(b"".join(pipeline))
        for _ in pipeline:
            replies.readline()
    server.sendall(command("SHUTDOWN", "NOSAVE"))


main()
