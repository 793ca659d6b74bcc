"""A service for tests: what it is sent comes back, until the client ends its stream.

echo.py ADDRESS PORT
"""

from __future__ import annotations

import socket
import sys
import threading


def serve(client: socket.socket) -> None:
    with client:
        while data := client.recv(65536):
            client.sendall(data)


def main(address: str, port: str) -> None:
    with socket.create_server((address, int(port))) as listener:
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
