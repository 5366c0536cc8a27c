"""The checks that every client that can be called as a function has to pass; README.md says what each means.

A client's script hands `run` a function that opens a session: an asynchronous context manager that gives a `Session`. What a session's `call`
answers is what a model would get to see, not what the wire carried.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import sys
import time
import urllib.request
from dataclasses import dataclass, field

DOOR = os.environ["DOOR"]
URL = os.environ["SERVER_URL"]
COMMAND = json.loads(os.environ["SERVER_COMMAND"])
ENV = json.loads(os.environ["SERVER_ENV"])
OFFLINE = bool(os.environ.get("OFFLINE"))

TOOL = "execute_python"
TOOLS = {TOOL, "install_packages", "list_preinstalled_packages", "get_environment_info"}
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
FIGURES = "import matplotlib.pyplot as plt\nfor n in range(20):\n    plt.figure()\n    plt.plot([1, 2, n])\n    plt.title(str(n))\nplt.show()"
NOISE = "import numpy as np\nfrom PIL import Image\nImage.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype='uint8'))"
LINES = "import time\nfor n in range(5):\n    print('line', n, flush=True)\n    time.sleep(0.5)"
SILENT = "import time\ntime.sleep(12)\n'woke'"
SPIN = os.environ["SPIN_CODE"]
HUMAN = "import humanize\nhumanize.naturalsize(1234567)"
WARNED = re.compile(r'warnings\\*"\s*:\s*\[\s*(\\n\s*)?\\*"')  # at least one, also where the JSON is inside of a string
IMAGE_STARTS = ("iVBOR", "/9j/", "UklGR")  # PNG, JPEG, WebP in base64


@dataclass
class Answer:
    text: str
    images: list[str] = field(default_factory=list)  # base64
    error: bool = False


class Session:
    async def tools(self) -> list[str]:
        raise NotImplementedError

    async def call(self, arguments: dict, name: str = TOOL, progress: list | None = None) -> Answer:
        """Calls a tool; where `progress` is a list, what the server tells meanwhile is appended to it."""
        raise NotImplementedError

    async def cancel(self, running: asyncio.Task) -> None:
        """Gives the call up, as a user of this client would."""
        running.cancel()


def answer(result) -> Answer:
    """The answer that the `mcp` package's result holds, in any of its versions."""
    texts = [part.text for part in result.content if part.type == "text"]
    images = [part.data for part in result.content if part.type == "image"]
    return Answer("".join(texts), images, bool(getattr(result, "is_error", getattr(result, "isError", False))))


def seen(part, error: bool | None = None) -> Answer:
    """The answer in what a framework hands to its model, whatever its types: all text, and all strings that are images.

    Where the framework has no mark for an error, what the JSON text says of it counts: the model can read that.
    """
    texts, images = [], []

    def walk(part) -> None:
        if isinstance(part, str):
            data = part.partition(";base64,")[2] if part.startswith("data:image/") else part
            (images if data.startswith(IMAGE_STARTS) and len(data) > 200 else texts).append(data)
        elif isinstance(part, bytes):
            walk(base64.b64encode(part).decode())
        elif isinstance(part, dict):
            for value in part.values():
                walk(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                walk(value)
        elif hasattr(part, "model_dump"):
            walk(part.model_dump())
        elif hasattr(part, "__dict__"):
            walk(vars(part))

    walk(part)
    text = "\n".join(texts)
    return Answer(text, images, '"success":false' in text.replace(" ", "").replace("\\", "") if error is None else error)


class Missed(Exception):
    """What a check wanted and did not see."""


def want(truth, seen) -> None:
    if not truth:
        raise Missed(str(seen)[:300])


async def watch(path: str) -> dict:
    def ask():
        with urllib.request.urlopen(f"{os.environ['WATCH_URL']}/{path}", timeout=30) as got:
            return json.load(got)

    return await asyncio.to_thread(ask)


async def tools(session: Session) -> str:
    names = set(await session.tools())
    want(TOOLS <= names, names)
    return f"{len(names)} tools"


async def prints(session: Session) -> str:
    got = await session.call({"code": "print('hel' + 'lo')"})
    want("hello" in got.text and not got.error, got)
    return ""


async def error(session: Session) -> str:
    got = await session.call({"code": "x = 1\n1 / 0"})
    want(got.error and "ZeroDivisionError" in got.text, got)
    return ""


async def plot(session: Session) -> str:
    got = await session.call({"code": FIGURE})
    want(len(got.images) == 1 and got.images[0].startswith(IMAGE_STARTS) and len(got.images[0]) > 1000, f"no image, but {got}")
    return ""


async def requirements(session: Session) -> str:
    got = await session.call({"code": HUMAN, "requirements": ["humanize"]})
    want("1.2 MB" in got.text, got)
    return ""


async def progress(session: Session) -> str:
    told = []
    got = await session.call({"code": LINES}, progress=told)
    want(not got.error and len(told) >= 4, f"{len(told)} notifications")
    return f"{len(told)} notifications"


async def timeout(session: Session) -> str:
    got = await session.call({"code": "import time\ntime.sleep(9)", "timeout": 1})
    want(got.error and "timeout" in got.text, got)
    return ""


async def alive(session: Session) -> None:
    got = await session.call({"code": "6 * 7"})
    want("42" in got.text and not got.error, f"not usable afterwards: {got}")


async def unknown(session: Session) -> str:
    try:
        got = await session.call({}, name="no_such_tool")
    except Missed:
        raise
    except Exception as refused:
        note = f"raises {type(refused).__name__}"
    else:
        want(got.error, got)
        note = ""
    await alive(session)
    return note


async def arguments(session: Session) -> str:
    async def call(given: dict) -> Answer:
        try:
            return await session.call(given)
        except Exception as raised:
            raise Missed(f"{json.dumps(given)} raises {type(raised).__name__}: {raised}"[:300]) from raised

    for given, named in (({}, "code"), ({"code": ["1"], "timeout": 5}, "code"), ({"code": "6 * 7", "timeout": "soon"}, "timeout")):
        got = await call(given)
        want(got.error and named in got.text, f"{json.dumps(given)}: {got}")
    for given in ({"code": "6 * 7", "timeout": 1000}, {"code": "6 * 7", "timeout": "10"}):
        got = await call(given)
        want("42" in got.text and not got.error, f"{json.dumps(given)}: {got}")
    return ""


async def large(session: Session) -> str:
    got = await session.call({"code": "print('x' * 3_000_000)"})
    want(got.text.count("x") >= 3_000_000 and not got.error, f"{len(got.text)} characters: {got.text[:100]}")
    return ""


async def images(session: Session) -> str:
    notes = []
    for code, wanted in ((NOISE, 1), (FIGURES, 20)):
        got = await session.call({"code": code})
        want(not got.error, got.text)
        want(got.images or wanted == 1, f"none of {wanted} images: {got.text[:200]}")
        want(len(got.images) == wanted or WARNED.search(got.text), f"{len(got.images)} of {wanted} images, and no word of it: {got.text[:200]}")
        notes.append(f"{len(got.images)} of {wanted}, {sum(map(len, got.images)) // 1000} KB")
    return "; ".join(notes)


async def heartbeat(session: Session) -> str:
    told = []
    started = time.monotonic()
    running = asyncio.create_task(session.call({"code": SILENT}, progress=told))
    while not told and not running.done():
        await asyncio.sleep(0.1)
    first = time.monotonic() - started
    got = await running
    want(told, "12 s of silence")
    want("woke" in got.text and first < 11, f"first sign after {first:.1f} s")
    return ""


def cancels(told: list | None):
    async def cancel(session: Session) -> str:
        running = asyncio.create_task(session.call({"code": SPIN, "timeout": 60}, progress=told))
        want((await watch("busy"))["busy"], "the code did not start")
        await asyncio.wait_for(session.cancel(running), 5)
        seconds = (await watch("gone"))["seconds"]
        running.cancel()
        with contextlib.suppress(BaseException):
            await asyncio.wait_for(running, 5)
        want(seconds is not None and seconds < 1, "ran on" if seconds is None else f"gone after {seconds} s")
        await alive(session)
        return f"{seconds} s"

    return cancel


async def cancel(session: Session) -> str:
    return f"{await cancels(None)(session)}, with progress {await cancels([])(session)}"


COMMON = {
    "print": prints, "error": error, "plot": plot, "requirements": requirements, "progress": progress, "timeout": timeout,
    "unknown": unknown, "arguments": arguments,
}  # fmt: skip
OWN = {"cancel": cancel, "large": large, "images": images}


def run(client: str, version: str, open_session, without: dict[str, str] | None = None) -> None:
    """Runs all checks but those that the client does not offer (`without` says why), and prints their lines."""
    without = dict(without or {})
    version = os.environ.get("SHOWN_VERSION", version)  # a gateway's, where the client is only the way to it
    if OFFLINE:
        without["requirements"] = "offline"

    def say(check: str, ok: bool | None, note: str) -> None:
        line = {"client": client, "version": version, "door": DOOR, "check": check, "ok": ok, "note": " ".join(note.split())}
        print(json.dumps(line), flush=True)

    async def step(name: str, check, session: Session | None) -> None:
        async def fresh():
            async with open_session() as mine:
                return await check(mine)

        if name in without:
            return say(name, None, without[name])
        try:
            say(name, True, await asyncio.wait_for(check(session) if session else fresh(), 60))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:
            say(name, False, words(raised))

    async def everything() -> None:
        try:
            beat = asyncio.create_task(step("heartbeat", heartbeat, None))
            try:
                async with open_session() as session:
                    await step("list", tools, session)
                    for name, check in COMMON.items():
                        await step(name, check, session)
            finally:
                await beat
        except Exception as raised:
            return say("list", False, words(raised))
        for name, check in OWN.items():
            await step(name, check, None)

    asyncio.run(everything())
    sys.stdout.flush()
    os._exit(0)  # threads of some clients never end


def words(raised: BaseException) -> str:
    """The words of an exception, or of the first one in a group."""
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    return str(raised) if isinstance(raised, Missed) else f"{type(raised).__name__}: {raised}"[:300]
