"""Tells a client's script when its spinning code runs and when it is gone, seen from outside: from the names of all processes."""

import http.server
import itertools
import json
import os
import pathlib
import threading
import time


NUMBERS = itertools.count()


class Watch:
    def __init__(self):
        name = f"spin{os.getpid()}-{next(NUMBERS)}"  # the kernel keeps 15 letters of a name
        self.code = (
            f"import ctypes\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)  # PR_SET_NAME\nprint('spinning', flush=True)\nwhile True:\n    pass"
        )

        def runs() -> bool:
            return any(read(process / "comm") == name for process in pathlib.Path("/proc").glob("[0-9]*"))

        def within(seconds: float, wanted: bool) -> float | None:
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                if runs() == wanted:
                    return round(time.monotonic() - began, 2)
                time.sleep(0.02)
            return None

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                said = {"busy": within(15, True) is not None} if self.path == "/busy" else {"seconds": within(5, False)}
                body = json.dumps(said).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def read(file: pathlib.Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
