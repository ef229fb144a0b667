"""What runs on a lab's hosts to measure them: `python lab_agent.py VERB ARGUMENTS`; the answer is a JSON line.

Standard library only, and nothing of edgesplit's own probes: the lab is what they are tried on.
"""

from __future__ import annotations

import json
import socket
import sys
import time

PORT = 9000
PIECE = 2**18
DATAGRAM = 200


def serve(address: str) -> None:
    """Answer one connection: its first byte says what is wanted."""
    with socket.create_server((address, PORT)) as server:
        print("ready", flush=True)
        client, _ = server.accept()
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wanted = client.recv(1)
            if wanted == b"e":
                while data := client.recv(64):
                    client.sendall(data)
            else:
                client.sendall(json.dumps(_received(client)).encode())


def _received(client: socket.socket) -> list[tuple[float, int]]:
    """(time, bytes so far), every 50 ms."""
    start, total, marks = time.perf_counter(), 0, [(0.0, 0)]
    store = bytearray(PIECE)
    while size := client.recv_into(store):
        total += size
        now = time.perf_counter() - start
        if now - marks[-1][0] >= 0.05:
            marks.append((now, total))
    return marks


def echo(address: str, count: str) -> list[float]:
    """Round trips of one byte, seconds."""
    times = []
    with socket.create_connection((address, PORT)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"e")
        for _ in range(int(count)):
            start = time.perf_counter()
            sock.sendall(b".")
            sock.recv(64)
            times.append(time.perf_counter() - start)
            time.sleep(0.002)
    return times


def bulk(address: str, seconds: str) -> list[tuple[float, int]]:
    """Send for so long; what the other side saw arrive."""
    with socket.create_connection((address, PORT)) as sock:
        sock.sendall(b"b")
        end, piece = time.perf_counter() + float(seconds), bytes(PIECE)
        while time.perf_counter() < end:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(PIECE):
            answer += data
    marks: list[tuple[float, int]] = json.loads(answer)
    return marks


def datagrams(address: str, count: str) -> int:
    """Send so many to a socket here that nobody reads; the lab counts what it lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(int(count)):
            sock.sendto(bytes(DATAGRAM), (address, PORT))
            if number % 20 == 0:
                time.sleep(0.001)
    return int(count)


def burn(seconds: str) -> list[float]:
    """(CPU seconds, wall seconds) of a busy loop."""
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < float(seconds):
        pass
    return [time.process_time() - used, time.perf_counter() - start]


VERBS = {"serve": serve, "echo": echo, "bulk": bulk, "datagrams": datagrams, "burn": burn}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))
