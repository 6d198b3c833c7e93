"""A small OpenAI-compatible server over an engine of ours: what the client side is tested against.

It keeps to the protocol as vLLM speaks it (`/v1/models`, `/v1/chat/completions` whole and streamed, `/tokenize`, its
refusals), and can be told to leave out what other servers do not have.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medical_qwen.generation import Generator, Request, Sampling


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        if self.allowed() and self.path == "/v1/models":
            cards = [{"id": name, "object": "model", "parent": parent} for name, parent in self.server.names.items()]
            if self.server.tokenizes:
                cards[0]["max_model_len"] = self.server.engine.context_length
            self.send({"object": "list", "data": cards})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.server.asked.append(asked)
        if self.path == "/v1/chat/completions" and self.server.refuse_after is not None:
            if self.server.refuse_after == 0:
                self.server.refused += 1
                self.send({"error": {"message": "overloaded"}}, 503)
                return
            self.server.refuse_after -= 1
        engine = self.server.engine
        length = len(engine.renderer.prompt(asked["messages"], asked.get("tools")))
        if self.path == "/tokenize" and self.server.tokenizes:
            self.send({"count": length, "max_model_len": engine.context_length, "tokens": []})
        elif self.path != "/v1/chat/completions":
            self.send({"error": {"message": "Not Found"}}, 404)
        elif length + asked["max_tokens"] > engine.context_length:
            said = f"This model's maximum context length is {engine.context_length} tokens. You requested more."
            self.send({"error": {"message": said, "code": 400}}, 400)
        else:
            self.complete(asked)

    def allowed(self) -> bool:
        if self.server.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        self.send({"error": {"message": "Unauthorized"}}, 401)
        return False

    def complete(self, asked: dict) -> None:
        sampling = Sampling(
            asked["max_tokens"],
            asked["temperature"],
            asked.get("top_p", 1.0),
            asked.get("repetition_penalty", 1.0),
            tuple(asked.get("stop", ())),
        )
        stream = self.server.engine.stream(
            Request(asked["messages"], asked.get("tools"), asked.get("seed", 0)), sampling
        )
        self.server.streams.append(stream)
        if not asked.get("stream"):
            text = "".join(stream)
            self.send(self.event("message", text, stream.answer.finish_reason) | self.usage(stream.answer))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for piece in stream:
                self.say(self.event("delta", piece, None))
            self.say(self.event("delta", "", stream.answer.finish_reason))
            self.say({**self.event("delta", "", None), "choices": []} | self.usage(stream.answer))
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:  # the client hung up
            stream.close()
            self.server.hung_up += 1

    def event(self, kind: str, text: str, reason: str | None) -> dict:
        said = {"role": "assistant", "content": text}
        return {"id": "1", "object": "chat.completion", "choices": [{"index": 0, kind: said, "finish_reason": reason}]}

    def usage(self, answer) -> dict:
        counts = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        return {"usage": counts | {"total_tokens": sum(counts.values())}}

    def say(self, event: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def send(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(engine: Generator, names: dict[str, str | None] | None = None, key: str | None = None, tokenizes=True):
    """The server, with its `address`, the `asked` bodies, the `streams` that it began, and how many clients `hung_up`.

    Args:
        names: of its models, each with the one that it is an adapter of.
        tokenizes: False leaves out vLLM's own `/tokenize` and `max_model_len`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.engine, server.names, server.key, server.tokenizes = engine, names or {"tiny": None}, key, tokenizes
    server.asked, server.streams, server.hung_up = [], [], 0
    server.refuse_after, server.refused = None, 0  # None: never; else after so many answers
    server.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
