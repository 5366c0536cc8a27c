"""The kernel's channel to the supervisor: length-prefixed frames over one stream socket.

What is sent here is content, never authority: the supervisor keeps its own clock and counts, and cuts off a kernel
that breaks the framing. Threads of the cell print, show figures and end at the same time: one lock keeps each frame
whole."""

import os
import socket
import struct
import threading
from json import dumps, loads

HANDOVER, READY, BEGUN, STDOUT, STDERR, IMAGE, REPORT, END, SYNC = b"H", b"R", b"B", b"O", b"E", b"I", b"V", b"Z", b"S"

_HEADER = struct.Struct("<cI")
_LENGTH = struct.Struct("<I")


class Channel:
    def __init__(self, fd):
        self.fd = fd
        self.lock = threading.RLock()

    def send(self, kind, payload=b""):
        data = memoryview(_HEADER.pack(kind, len(payload)) + payload)
        with self.lock:
            while data:
                data = data[os.write(self.fd, data) :]

    def hand_over(self, fd):
        """Gives the supervisor a descriptor."""
        end = socket.socket(fileno=self.fd)
        socket.send_fds(end, [_HEADER.pack(HANDOVER, 0)], [fd])
        end.detach()

    def send_json(self, kind, value):
        self.send(kind, dumps(value, ensure_ascii=False).encode())

    def receive(self):
        """The next job, or None when the supervisor has gone."""
        header = self._read(_LENGTH.size)
        body = header and self._read(_LENGTH.unpack(header)[0])
        return loads(body) if body else None

    def sync(self):
        """Waits until the supervisor has taken everything from the raw pipes."""
        with self.lock:
            self.send(SYNC)
            self._read(1)

    def _read(self, size):
        parts = []
        while size:
            part = os.read(self.fd, min(size, 1 << 20))
            if not part:
                return b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self):
        os.close(self.fd)
        self.fd = -1
