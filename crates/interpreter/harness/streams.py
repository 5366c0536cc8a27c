"""sys.stdout and sys.stderr.

Two rules. Order: what Python prints, what C code writes to descriptors 1 and 2, and what subprocesses write arrive in
the order in which they were written. Nothing is lost: every write goes to memory shared with the supervisor first,
so text survives os._exit, a crash and a kill.

Python's text travels as frames, the rest through raw pipes. A frame is only sent when the pipes are empty (else the
supervisor is first asked to empty them), and the supervisor reads frames before pipes: together that is exact for a
program that waits for its subprocesses. One exception: a program that has printed hundreds of lines is sent in larger
pieces, and C code that then writes to a descriptor by itself may come up to 10 ms early."""

import fcntl
import io
import mmap
import os
import sys
import termios
from time import monotonic

from harness_channel import STDERR, STDOUT

# Shared memory: for each stream a u32 length, a u32 of what the cell has sent as frames before, then its pending bytes.
SHARED_SIZE = 1 << 16
_REGION = SHARED_SIZE // 2
_HEADER = 8
_CAPACITY = _REGION - _HEADER

# The first lines are sent one by one; a program that prints more than this is sent in larger pieces.
_EAGER_LINES = 256
_COALESCE_BYTES = 16384
_COALESCE_SECONDS = 0.01

_NONE_WAITING = bytes(4)
# Before any of these runs another program, what was printed so far must be on its way.
_FLUSH_BEFORE = frozenset(("os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.startfile", "time.sleep"))


class _Buffer(io.BufferedIOBase):
    """The bytes side of one stream."""

    def __init__(self, output, kind, fd, region):
        self._output, self._kind, self._fd = output, kind, fd
        self._bytes = region[_HEADER:]
        self._length = region[:4].cast("I")
        self._sent = region[4:8].cast("I")
        self._pending = 0
        self._acquire, self._release = output.lock.acquire, output.lock.release

    def writable(self):
        return True

    def fileno(self):
        return self._fd

    def write(self, data):
        if type(data) is not bytes:
            data = memoryview(data).tobytes()  # of an array `len` is the number of its items
        size = len(data)
        output = self._output
        self._acquire()  # not `with`, which costs as much as all the rest
        try:
            # The way of a program that prints much: text gathers until it is large or old.
            start = self._pending
            end = start + size
            if end <= _COALESCE_BYTES and output.lines >= _EAGER_LINES and output.writer is self:
                self._bytes[start:end] = data
                self._length[0] = self._pending = end
                if monotonic() > output.send_by:
                    self.send()
            else:
                self._write_eagerly(data)
        finally:
            self._release()
        return size

    def _write_eagerly(self, data):
        output = self._output
        if output.raw:
            self._write_raw(data)
            return
        if output.writer is not self:
            output.switch(self)
        size = len(data)
        if self._pending + size > _CAPACITY:
            self.send()
            if size > _CAPACITY:
                self._send_large(data)
                return
        start = self._pending
        self._bytes[start : start + size] = data
        self._length[0] = self._pending = start + size
        if data[-1:] == b"\n":
            output.lines += 1
            self.send()
        elif output.lines >= _EAGER_LINES:
            self.send()

    def flush(self):
        output = self._output
        with output.lock:
            if not output.raw:
                self.send()

    def send(self):
        if self._pending:
            output = self._output
            output.settle()
            output.channel.send(self._kind, bytes(self._bytes[: self._pending]))
            sent, self._length[0] = self._pending, 0
            # Whoever is ended before this has it told by the frame alone, and whoever is before the line above, too.
            self._count(sent)
            self._pending = 0
            output.send_by = monotonic() + _COALESCE_SECONDS

    def begin(self):
        self._sent[0] = 0

    def _count(self, size):
        self._sent[0] = (self._sent[0] + size) & 0xFFFFFFFF

    def _send_large(self, data):
        self._output.settle()
        view = memoryview(data)
        for start in range(0, len(view), _REGION):
            part = bytes(view[start : start + _REGION])
            self._output.channel.send(self._kind, part)
            self._count(len(part))

    def _write_raw(self, data):
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class Output:
    """Both streams, and what they share."""

    def __init__(self, channel, shared_fd):
        memory = memoryview(mmap.mmap(shared_fd, SHARED_SIZE))
        self.channel = channel
        self.lock = channel.lock
        self.raw = False
        self.send_by = self.lines = 0
        self.wrote_files = False
        self.stdout = _Buffer(self, STDOUT, 1, memory[:_REGION])
        self.stderr = _Buffer(self, STDERR, 2, memory[_REGION:])
        self.writer = self.stdout
        self._process = os.getpid()
        os.register_at_fork(before=self._before_fork, after_in_parent=self.lock.release, after_in_child=self._after_fork)
        sys.addaudithook(self._audit)

    def install(self):
        sys.stdout = sys.__stdout__ = self._text(self.stdout)
        sys.stderr = sys.__stderr__ = self._text(self.stderr)

    def _text(self, buffer):
        return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)

    def switch(self, buffer):
        self.writer.send()
        self.writer = buffer

    def settle(self):
        """Lets the supervisor take what C code or subprocesses have written, so that it comes before the next frame."""
        for fd in (1, 2):
            try:
                waiting = fcntl.ioctl(fd, termios.FIONREAD, _NONE_WAITING)
            except OSError:  # closed by the code
                continue
            if waiting != _NONE_WAITING:
                self.channel.sync()
                return

    def finish(self):
        """Sends what is left at the end of a cell, through whatever the code has made of sys.stdout and sys.stderr."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        with self.lock:
            self.stdout.send()
            self.stderr.send()

    def begin(self):
        """Another cell comes."""
        self.lines = 0
        self.send_by = 0
        self.wrote_files = False
        for buffer in (self.stdout, self.stderr):
            buffer.begin()

    def _before_fork(self):
        self.lock.acquire()
        if not self.raw:
            self.writer.send()

    def _after_fork(self):
        # A child of user code has no channel: it prints to the raw pipes like any other program.
        if not self.raw:
            self.raw = True
            self.lines = 0
            self.channel.close()
        self.lock.release()

    def _audit(self, event, args):
        if event == "open" and args and type(args[-1]) is int and args[-1] & (os.O_WRONLY | os.O_RDWR):
            self.wrote_files = True
        if event in _FLUSH_BEFORE and not self.raw and self.writer._pending:
            with self.lock:
                self.writer.send()
