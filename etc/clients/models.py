"""Models that are scripts: endpoints on localhost that ask an agent for one call after the other.

Rule: what an endpoint is sent is kept as the model would read it; nothing is judged here.
"""

import contextlib
import dataclasses
import http.server
import json
import re
import threading

SERVER = "python"  # what the configuration calls this server


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
