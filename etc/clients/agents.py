"""What Codex, Claude Code and Gemini CLI have in common: the calls that their models ask for, and the checks of what comes back.

Rule: a check judges what the model is told, never what the agent shows. `README.md` says how the runner calls the three and what they print.
"""

import base64
import contextlib
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
    ("heartbeat", *script(code=f"import time\ntime.sleep(64)\nprint('{WORDS}', 6 * 7)", timeout=100)),
    ("large", *script(code=f"print('7' * {LARGE})")),
    ("images", *script(code=FIGURES)),
    ("images", *script(code=NOISE)),
]
REQUIREMENTS = ("requirements", *script(code="import humanize\nhumanize.naturalsize(1234567)", requirements=["humanize==4.12.3"]))


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
        self.say("progress", None, "no word of it to the model")
        if os.environ.get("OFFLINE"):
            self.say("requirements", None, "no package index")

    def cancelled(self, model, agent, stop, go_on):
        """One session: a call that never ends is stopped as a person does it, and the next one is answered."""
        agent.await_code()
        stop()
        seconds = watch("gone")["seconds"]
        gone = "it runs on" if seconds is None else f"gone after {seconds} s"
        self.say("cancel", seconds is not None and seconds <= 1, gone)
        go_on()
        model.finished.wait(30)
        after = list(model.answers.values())[-1:]
        self.say("after cancel", bool(after) and judge_print(*after)[0], "the next call of the session is answered")
        agent.end()


class Agent:
    """A running agent that is spoken to in lines of JSON."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(command, env=environment, cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        self.asked, self.answers, self.came = 0, {}, threading.Condition()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if "id" in message and "method" not in message:
                    with self.came:
                        self.answers[message["id"]] = message
                        self.came.notify_all()

    def tell(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def begin(self, method, params):
        """Asks, and gives the number that the answer will have."""
        self.asked += 1
        self.tell({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params})
        return self.asked

    def answer(self, number):
        with self.came:
            if not self.came.wait_for(lambda: number in self.answers, 60):
                self.end()
                raise SystemExit(f"request {number} has no answer")
            return self.answers[number].get("result")

    def ask(self, method, params):
        return self.answer(self.begin(method, params))

    def await_code(self):
        if not watch("busy")["busy"]:
            self.end()
            raise SystemExit("the code to cancel was never run")

    def end(self):
        """Says that nothing more will come, and ends it when that is not understood."""
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


# What a model asks for in a session that is interrupted.
INTERRUPTED = [("cancel", *script(code=SPIN, timeout=100)), ("after cancel", *script(code=f"print('{WORDS}', 6 * 7)"))]


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


judge_heartbeat = judge_print


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


def run(command, environment, seconds=300):
    """Runs an agent to its end; what it wrote."""
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    return done.stdout + done.stderr
