"""An inference server with metrics and logs. The model is a toy in pure Python: it needs no GPU and no framework.

It has the two calls of OpenAI's API that clients and canaries need: `/v1/models` and `/v1/completions`. Replace
`TinyModel` by yours. The metrics are on port 9400.
"""

import argparse
import http.server
import json
import threading
import time
from typing import Any

from gpu_sharing.workload import GPUMonitor, InferenceMetricsCollector, StructuredLogger, my_slice
from gpu_sharing.workload.exporter import Exporter

MODEL = "tiny-markov"
MOST_BYTES = 65536
MOST_TOKENS = 256
TEXT = "a pod asks for a slice of a gpu and a slice of a gpu is what a pod gets"


class TinyModel:
    """Continues a text by the word that follows its last word in a sentence; remembers its answers."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self.following = dict(zip(words, [*words[1:], words[0]], strict=True))
        self.remembered: dict[tuple[str, int], list[str]] = {}

    def continued(self, prompt: str, tokens: int) -> tuple[list[str], bool]:
        """Return that many words, and whether they were remembered."""
        words = prompt.lower().split()
        key = (words[-1] if words else "", tokens)
        if key in self.remembered:
            return self.remembered[key], True
        word, answer = key[0], []
        for _ in range(tokens):
            word = self.following.get(word, "a")
            answer.append(word)
        if len(self.remembered) < 1000:
            self.remembered[key] = answer
        return answer, False


class Refused(Exception):
    """A request that cannot be served."""


class Server(http.server.ThreadingHTTPServer):
    """The server, with its model and metrics."""

    daemon_threads = True

    def __init__(self, options: argparse.Namespace, log: StructuredLogger) -> None:
        super().__init__((options.host, options.port), Handler)
        self.delay_seconds: float = options.delay_seconds
        self.log = log
        self.metrics = InferenceMetricsCollector()
        self.model = TinyModel(TEXT)
        self.lock = threading.Lock()

    def completion(self, request: Any) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            Refused: It is none.
        """
        if not isinstance(request, dict):
            raise Refused("write a JSON object")
        prompt, tokens = request.get("prompt", ""), request.get("max_tokens", 16)
        if not isinstance(prompt, str) or not isinstance(tokens, int) or not 1 <= tokens <= MOST_TOKENS:
            raise Refused(f"prompt has to be text, max_tokens 1 to {MOST_TOKENS}")
        with self.lock:  # One request at a time computes, as on a real GPU.
            time.sleep(self.delay_seconds)
            words, hit = self.model.continued(prompt, tokens)
        self.metrics.record_cache(MODEL, hit=hit)
        self.metrics.record_tokens(MODEL, len(words))
        choice = {"index": 0, "text": " " + " ".join(words), "finish_reason": "length"}
        return {"object": "text_completion", "model": MODEL, "choices": [choice]}


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    timeout = 30

    def do_GET(self) -> None:
        """List the model, or report health."""
        if self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        """Complete a prompt."""
        size = self.headers.get("Content-Length", "")
        if self.path != "/v1/completions" or not size.isdigit() or int(size) > MOST_BYTES:
            self.answer(404 if size.isdigit() else 411, {})
            return
        body = self.rfile.read(int(size))
        try:
            with self.server.metrics.request(MODEL):
                answer = self.server.completion(json.loads(body))
        except (Refused, ValueError, RecursionError) as cause:
            self.server.log.warning("request refused", cause=str(cause))
            self.answer(400, {"error": {"message": str(cause)}})
            return
        self.answer(200, answer)

    def answer(self, status: int, value: Any) -> None:
        """Send JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: the metrics count requests."""


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104  # the pod's
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=9400)
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="in each request, so that it can be watched")
    options = parser.parse_args()

    log = StructuredLogger("tiny-server")
    server = Server(options, log)
    with GPUMonitor(interval_seconds=1.0) as monitor:
        monitor.export()
        exporter = Exporter(options.metrics_port)
        mine = my_slice()
        log.info(
            "serving", port=server.server_port, metrics_port=exporter.port,
            memory_mib=[one.memory_mib for one in mine.gpus], not_known=[str(one) for one in mine.problems],
        )  # fmt: skip
        server.serve_forever()


if __name__ == "__main__":
    main()
