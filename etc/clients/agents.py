"""What Codex, Claude Code and Gemini CLI have in common: a model that is a script on localhost, and what it asks for.

Rule: a check judges what the model's endpoint is sent, never what the agent shows. `README.md` says how the runner calls
the three and what they print.
"""

import base64
import contextlib
import dataclasses
import http.server
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request

SERVER = "python"  # what the configuration calls this server
DOOR = os.environ["DOOR"]
ENVIRONMENT = os.environ["ENVIRONMENT"]
HOME = os.environ["HOME"]
BIN = os.path.join(HOME, "bin")
PATH = f"{BIN}:{os.environ['PATH']}"
LARGE = 3_000_000
WORDS = "six times seven is"
SPIN = os.environ["SPIN_CODE"]
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
FIGURES = "import matplotlib.pyplot as plt\nfor i in range(20):\n    plt.figure(); plt.plot([1, i]); plt.show()"
NOISE = "import numpy, matplotlib.pyplot as plt\nplt.figure(figsize=(8, 8), dpi=200)\nplt.imshow(numpy.random.rand(1600, 1600)); plt.show()"
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")


def script(**arguments):
    """A call of execute_python."""
    return "execute_python", arguments


# One session: the checks in their order, and the calls that the model asks for in each.
CALLS = [
    ("print", *script(code=f"print('{WORDS}', 6 * 7)")),
    ("error", *script(code="1 / 0")),
    ("plot", *script(code=PLOT)),
    ("arguments", *script(code="1", timeout="soon")),
    ("arguments", *script(cod="1")),
    ("unknown", "no_such_tool", {}),
    ("unknown", *script(code=f"print('{WORDS}', 6 * 7)")),
    ("timeout", *script(code="import time\ntime.sleep(60)", timeout=1)),
    ("large", *script(code=f"print('7' * {LARGE})")),
    ("images", *script(code=FIGURES)),
    ("images", *script(code=NOISE)),
]
REQUIREMENTS = ("requirements", *script(code="import humanize\nhumanize.naturalsize(1234567)", requirements=["humanize==4.12.3"]))


@dataclasses.dataclass
class Answer:
    """What the model reads of one call."""

    text: str
    images: list
    failed: bool | None = None  # none where the protocol of the model has no word for it


class Model:
    """Asks for one call after the other, and keeps what comes back. The three protocols are below."""

    def __init__(self, calls):
        self.calls = calls
        self.asked = 0
        self.tools = {}  # what was offered: the server's name of a tool, and how the model calls it
        self.answers = {}  # by the number of the call
        self.finished = threading.Event()
        self.lock = threading.Lock()
        model = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.reply(404, "application/json", b"{}")

            do_HEAD = do_GET

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
                with model.lock:
                    kind, reply = model.answer(self.path, body)
                self.reply(200, kind, reply.encode())

            def reply(self, status, kind, body):
                with contextlib.suppress(ConnectionError):  # it may have been ended meanwhile
                    self.send_response(status)
                    self.send_header("content-type", kind)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next_call(self):
        """The number, name and input of the call to ask for; none when all were made."""
        if not self.tools or self.asked == len(self.calls):
            if self.tools:
                self.finished.set()
            return None
        _, tool, arguments = self.calls[self.asked]
        self.asked += 1
        own = self.tools["execute_python"]
        return self.asked - 1, self.tools.get(tool, own.replace("execute_python", tool)), arguments

    def keep(self, number, answer):
        self.answers.setdefault(number, answer)

    def offered(self, names):
        """Takes note of the tools: agents write the server's name before a tool's, each in its own way."""
        for name in names:
            match = re.fullmatch(rf"(?:mcp_+)?{SERVER}_+(\w+)|(execute_python)", name)
            if match:
                self.tools[match[1] or match[2]] = name


class OpenAi(Model):
    """The Responses API, as Codex speaks it: a server is a namespace."""

    def answer(self, _, body):
        for namespace in body.get("tools", []):
            if namespace.get("name") == f"mcp__{SERVER}":
                self.namespace = namespace["name"]
                self.tools.update((tool["name"], tool["name"]) for tool in namespace["tools"])
        for item in body.get("input", []):
            if item.get("type") == "function_call_output" and item["call_id"].startswith("call_"):
                output = item["output"]
                parts = [{"text": output}] if isinstance(output, str) else output
                text = "".join(part.get("text", "") for part in parts)
                images = [part["image_url"].split(",", 1)[1] for part in parts if "image_url" in part]
                self.keep(int(item["call_id"][5:]), Answer(text, images))
        call = self.next_call()
        if call:
            item = {"type": "function_call", "id": f"fc_{call[0]}", "call_id": f"call_{call[0]}", "name": call[1],
                    "namespace": self.namespace, "arguments": json.dumps(call[2])}
        else:
            content = [{"type": "output_text", "text": "done", "annotations": []}]
            item = {"type": "message", "role": "assistant", "id": "m", "content": content}
        usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None, "total_tokens": 2}
        events = [
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_item.done", "item": item, "output_index": 0},
            {"type": "response.completed", "response": {"id": "r", "output": [item], "usage": usage}},
        ]
        return "text/event-stream", named_events(events)


class Anthropic(Model):
    """The Messages API."""

    def answer(self, path, body):
        if "count_tokens" in path:
            return "application/json", '{"input_tokens": 10}'
        offered = [tool.get("name", "") for tool in body.get("tools") or []]
        self.offered(offered)
        blocks = [block for message in body.get("messages", []) if isinstance(message["content"], list) for block in message["content"]]
        for block in blocks:
            if block.get("type") == "tool_result" and block["tool_use_id"].startswith("toolu_"):
                content = block.get("content", "")
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                text = "".join(part["text"] for part in parts if part["type"] == "text")
                images = [part["source"]["data"] for part in parts if part["type"] == "image"]
                self.keep(int(block["tool_use_id"][6:]), Answer(text, images, bool(block.get("is_error"))))
        # It asks other things by the way, without these tools.
        call = self.next_call() if self.tools.get("execute_python") in offered else None
        if call:
            block = {"type": "tool_use", "id": f"toolu_{call[0]}", "name": call[1], "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(call[2])}
        else:
            block, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": "done"}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body.get("model"), "content": [],
                   "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
        reason = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
        if not body.get("stream"):
            whole = {**block, "input": call[2]} if call else {"type": "text", "text": "done"}
            return "application/json", json.dumps({**message, **reason, "content": [whole]})
        events = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": reason, "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        ]
        return "text/event-stream", named_events(events)


class Gemini(Model):
    """generateContent. Answers have no number: the nth is the nth call's."""

    def answer(self, path, body):
        if "countTokens" in path:
            return "application/json", '{"totalTokens": 10}'
        offered = [function["name"] for tool in body.get("tools", []) for function in tool.get("functionDeclarations", [])]
        self.offered(offered)
        number = -1
        for part in (part for content in body.get("contents", []) for part in content.get("parts", [])):
            response = part.get("functionResponse")
            if response:
                number += 1
                inner = response["response"]
                self.keep(number, Answer(json.dumps(inner, ensure_ascii=False), [], "error" in inner))
                parts = response.get("parts", [])
            else:
                parts = [part] if number >= 0 else []
            for data in (inner["inlineData"]["data"] for inner in parts if "inlineData" in inner):
                images = self.answers[number].images
                if data not in images:
                    images.append(data)
        call = self.next_call() if self.tools.get("execute_python") in offered else None
        as_json = body.get("generationConfig", {}).get("responseMimeType") == "application/json"
        part = {"functionCall": {"name": call[1], "args": call[2]}} if call else {"text": "{}" if as_json else "done"}
        answer = json.dumps({
            "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
            "modelVersion": "script",
        })
        return ("text/event-stream", f"data: {answer}\n\n") if "stream" in path else ("application/json", answer)


def named_events(events):
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


class Checks:
    """What was found, one line each."""

    def __init__(self, client, version):
        self.line = {"client": client, "version": version, "door": DOOR}

    def say(self, check, ok, note=""):
        print(json.dumps({**self.line, "check": check, "ok": ok, "note": note[:300]}), flush=True)

    def session(self, model, run):
        """Plays the whole session: `run` starts the agent and returns what it said at its end."""
        said = run()
        self.say("list", "execute_python" in model.tools, ", ".join(sorted(model.tools)) or f"no tools; {said[-200:]}")
        for check in dict.fromkeys(check for check, *_ in model.calls):
            numbers = [number for number, call in enumerate(model.calls) if call[0] == check]
            answers = [model.answers.get(number) for number in numbers]
            if None in answers:
                self.say(check, False, f"the model got {len(model.answers)} of {len(model.calls)} answers; {said[-200:]}")
            else:
                self.say(check, *globals()[f"judge_{check}"](*answers))
        for check in ("progress", "heartbeat"):
            self.say(check, None, "the model is not told")
        if os.environ.get("OFFLINE"):
            self.say("requirements", None, "no package index")

    def cancelled(self, how):
        """Says how long the code ran on after it was cancelled."""
        seconds = watch("gone")["seconds"]
        ok = seconds is not None and seconds <= 1
        self.say("cancel", ok, f"{how}: " + ("it runs on" if seconds is None else f"gone after {seconds} s"))


def calls():
    return CALLS if os.environ.get("OFFLINE") else [*CALLS, REQUIREMENTS]


def are_pictures(images):
    return all(base64.b64decode(data).startswith(SIGNATURES) for data in images)


def judge_print(answer):
    return f"{WORDS} 42" in answer.text and not answer.failed, answer.text


def judge_error(answer):
    return "ZeroDivisionError" in answer.text and answer.failed is not False, answer.text


def judge_plot(answer):
    return len(answer.images) == 1 and are_pictures(answer.images), f"{len(answer.images)} images"


def judge_arguments(number, name):
    """An answer that names the field and can be read, not an error of the protocol, which agents wrap in words of their own."""
    texts = f"{number.text} / {name.text}"
    is_read = "timeout" in number.text and "code" in name.text and not answered(number) and not answered(name)
    return is_read and "-32602" not in texts and "backtrace" not in texts.lower(), texts


def answered(answer):
    """True when the code was run."""
    return re.search(r'\\?"success\\?":\s*true', answer.text) is not None


def judge_unknown(unknown, after):
    return not answered(unknown) and judge_print(after)[0], unknown.text


def judge_requirements(answer):
    return "1.2 MB" in answer.text and not answer.failed, answer.text


def judge_timeout(answer):
    return "timeout" in answer.text.lower() and not answered(answer) and answer.failed is not False, answer.text


def judge_large(answer):
    """Agents cut long answers themselves, or keep them in a file that the model can read."""
    read = max((len(digits) for digits in re.findall(r"\d+", answer.text)), default=0)
    kept = 0
    for path in re.findall(rf"{re.escape(HOME)}[^\s\"'<>]+", answer.text):
        with contextlib.suppress(OSError):
            kept = os.path.getsize(path.rstrip(".,"))
    note = f"the model reads {len(answer.text)} characters" + (f", and has a file of {kept}" if kept else "")
    return read >= 1000 or kept >= LARGE, note


def judge_images(figures, noise):
    """All of them, or the answer says that some were left out."""
    told = all(is_told(answer, wanted) for answer, wanted in ((figures, 20), (noise, 1)))
    sizes = f"{len(figures.images)} of 20 figures, {len(noise.images)} of 1 large image"
    return told and are_pictures(figures.images + noise.images) and not figures.failed and not noise.failed, sizes


def is_told(answer, wanted):
    return len(answer.images) == wanted or re.search(r"left out|omitted", answer.text) is not None


def watch(what):
    with urllib.request.urlopen(f"{os.environ['WATCH_URL']}/{what}", timeout=60) as answer:
        return json.load(answer)


def paste(client, program, environment):
    """Does what the README tells to do: runs the line of `paste.toml`, with this server's address in it."""
    put_on_path()
    with open(os.path.join(os.path.dirname(__file__), "paste.toml"), "rb") as file:
        line = tomllib.load(file)[client][DOOR]
    command = shlex.split(line.replace("http://127.0.0.1:8000/lambda/mcp/", os.environ["SERVER_URL"]))
    subprocess.run([program, *command[1:]], env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True, timeout=60)


def put_on_path():
    """Makes `code-interpreter` the server to test, with the environment that it wants."""
    os.makedirs(BIN, exist_ok=True)
    command = json.loads(os.environ["SERVER_COMMAND"])
    variables = [f"{name}={value}" for name, value in json.loads(os.environ["SERVER_ENV"]).items()]
    program = os.path.join(BIN, "code-interpreter")
    with open(program, "w") as file:
        file.write(f'#!/bin/sh\nexec env {shlex.join([*variables, command[0]])} "$@"\n')
    os.chmod(program, 0o755)


def run(command, environment, seconds=150):
    """Runs an agent to its end; what it wrote."""
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    return done.stdout + done.stderr


def interrupt(command, environment):
    """Starts an agent whose call never ends, and does what Ctrl-C does as soon as the code runs; the agent, which ends."""
    agent = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, start_new_session=True)
    await_code(agent)
    os.killpg(agent.pid, signal.SIGINT)
    return agent


def await_code(agent):
    if not watch("busy")["busy"]:
        agent.kill()
        raise SystemExit("the code to cancel was never run")


def end(agent):
    """Waits for its end, and makes one when it does not come."""
    try:
        agent.wait(20)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
