"""Canaries of model servers: each request is one that its engine publishes, and "ready" means that a token came."""

import argparse
import base64
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema_rs
import pytest

from gpu_sharing.core import error_codes
from gpu_sharing.workload import probing
from gpu_sharing.workload.canaries import asking, engines, sglang_api
from gpu_sharing.workload.canaries import settings as canary_settings
from tests.component import request_schemas
from tests.support import model_server

CHOICES = {"choices": [{"index": 0, "text": "!"}]}
GENERATED = {"text": "!", "meta_info": {"completion_tokens": 1}}
MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "openai": ("/v1/completions", request_schemas.OPENAI_COMPLETIONS, CHOICES),
    "openai-chat": ("/v1/chat/completions", request_schemas.OPENAI_CHAT, CHOICES),
    "vllm": ("/v1/completions", request_schemas.VLLM_COMPLETIONS, CHOICES),
    "trtllm": ("/v1/completions", request_schemas.TENSORRT_LLM_COMPLETIONS, CHOICES),
    "sglang": ("/generate", request_schemas.SGLANG_GENERATE, GENERATED),
    "sglang-decode": ("/generate", request_schemas.SGLANG_DIVIDED, GENERATED),
    "sglang-prefill": ("/generate", request_schemas.SGLANG_DIVIDED, GENERATED),
    "sglang-vision": ("/v1/chat/completions", request_schemas.OPENAI_CHAT, CHOICES),
    "sglang-image": ("/v1/images/generations", request_schemas.SGLANG_IMAGES, {"data": [{"url": "file"}]}),
    "triton": ("/v2/models/tiny/generate", request_schemas.TRITON_GENERATE, {"model_name": "tiny", "text_output": "!"}),
    "kserve": ("/v2/models/tiny/infer", request_schemas.KSERVE_INFER, {"model_name": "tiny", "outputs": [{}]}),
}  # fmt: skip
METADATA = {
    "name": "tiny", "platform": "onnxruntime_onnx",
    "inputs": [
        {"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]},
        {"name": "text", "datatype": "BYTES", "shape": [1, 1]},
        {"name": "flag", "datatype": "BOOL", "shape": [1]},
    ],
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[model_server.ModelServer]:
    with model_server.running() as running:
        running.answer("GET /v1/models", MODELS)
        running.answer("GET /v2/models/tiny", METADATA)
        yield running


def validating(schema: dict[str, Any], answer: Any) -> Callable[[bytes], model_server.Reply]:
    """Refuse what the schema refuses, as the engine would."""

    def reply(body: bytes) -> model_server.Reply:
        wrong = [one.message for one in jsonschema_rs.validator_for(schema).iter_errors(json.loads(body))]
        return model_server.json_reply({"error": wrong}, 422) if wrong else model_server.json_reply(answer)

    return reply


def probe(*words: str, environment: dict[str, str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    probing.add_arguments(parser)
    return probing.run(parser.parse_args(words), environment or {})


def test_every_engine_is_checked_here_and_named_in_the_help() -> None:
    """A new engine without its published schema would be a guess."""
    assert set(CASES) == set(engines.ENGINES) == set(probing.ENGINE_NAMES)


@pytest.mark.parametrize("environment", [{}, {canary_settings.TOKEN_IDS: "1, 15043"}])
@pytest.mark.parametrize("engine", sorted(CASES))
def test_each_request_is_one_that_its_engine_publishes(
    engine: str, environment: dict[str, str], server: model_server.ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused canary would keep a healthy server out of its Service."""
    path, schema, answer = CASES[engine]
    server.answers[f"POST {path}"] = validating(schema, answer)
    named = {canary_settings.MODEL: "tiny"} if engine in ("triton", "kserve") else {}

    status = probe(server.url, "--engine", engine, "--json", environment=environment | named)

    told = json.loads(capsys.readouterr().out)
    assert status == probing.READY, told
    assert told["endpoints"][0]["by"] == "answer"
    assert [what for what, _, _ in server.asked][-1] == f"POST {path}"


@pytest.mark.parametrize("engine", sorted(CASES))
def test_a_schema_refuses_a_request_of_another_engine(engine: str) -> None:
    """Else the test above could not fail."""
    _, schema, _ = CASES[engine]
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {"question": "Hi"})


@pytest.mark.parametrize("engine", sorted(CASES))
def test_a_canary_asks_for_one_token_only(engine: str) -> None:
    """A probe every ten seconds must not cost the users a slot of the batch for long."""
    payload = engines.ENGINES[engine].payload(canary_settings.CanarySettings(), "tiny", METADATA)
    text = json.dumps(payload)
    if engine == "kserve":
        assert payload["inputs"][0]["shape"] == [1, 3, 8, 8]
        assert len(payload["inputs"][0]["data"]) == 192
    elif engine == "sglang-image":
        assert payload["n"] == payload["num_inference_steps"] == 1
    else:
        assert '_tokens": 1' in text
    assert len(text) < 2000


def test_the_model_is_the_first_that_the_server_lists(server: model_server.ModelServer) -> None:
    """OpenAI's API refuses a request without one, and the pod's owner should not write it twice."""
    server.answer("POST /v1/completions", CHOICES)
    assert probe(server.url) == probing.READY
    assert json.loads(server.asked[-1][2])["model"] == "tiny"


def test_a_server_without_a_list_of_models_is_asked_without_a_name(server: model_server.ModelServer) -> None:
    """A proxy may route completions only."""
    server.answer("GET /v1/models", {}, 404)
    server.answer("POST /v1/completions", CHOICES)
    assert probe(server.url, "--engine", "vllm") == probing.READY
    assert "model" not in json.loads(server.asked[-1][2])


@pytest.mark.parametrize(
    ("files", "token_ids"),
    [
        ({"config.json": {"bos_token_id": 128000}}, [128000]),
        ({"config.json": {"bos_token_id": 1}, "generation_config.json": {"bos_token_id": [2, 3]}}, [2]),
        ({"config.json": {"bos_token_id": None}}, None),
        ({"config.json": {"bos_token_id": True}}, None),
        ({"config.json": {"bos_token_id": -1}}, None),
        ({"config.json": ["no object"]}, None),
        ({}, None),
    ],
)
def test_bos_comes_from_the_tokenizer(
    files: dict[str, Any], token_ids: list[int] | None, tmp_path: pathlib.Path, server: model_server.ModelServer
) -> None:
    """Models without BOS, such as Qwen's, are asked with text."""
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    server.answer("POST /generate", GENERATED)

    assert probe(server.url, "--engine", "sglang", environment={canary_settings.TOKENIZER: str(tmp_path)}) == 0

    sent = json.loads(server.asked[-1][2])
    assert sent.get("input_ids") == token_ids
    assert ("text" in sent) is (token_ids is None)


def test_the_environment_overrides_prompt_payload_and_key(server: model_server.ModelServer) -> None:
    """A guarded server needs its key, and an unusual model its own request."""
    server.answer("POST /v1/completions", CHOICES)
    environment = {canary_settings.TEXT: "Ping", canary_settings.API_KEY: "s3cret"}
    assert probe(server.url, environment=environment) == probing.READY
    assert json.loads(server.asked[-1][2])["prompt"] == "Ping"
    assert all(headers["Authorization"] == "Bearer s3cret" for _, headers, _ in server.asked)

    assert probe(server.url, environment={canary_settings.PAYLOAD: '{"prompt": [7], "max_tokens": 2}'}) == probing.READY
    assert json.loads(server.asked[-1][2]) == {"prompt": [7], "max_tokens": 2}


@pytest.mark.parametrize(
    "environment",
    [
        {canary_settings.TOKEN_IDS: "1,two"}, {canary_settings.TOKEN_IDS: "1," * 5000 + "1"},
        {canary_settings.TOKEN_IDS: "99999999"}, {canary_settings.TOKEN_IDS: "-1"},
        {canary_settings.PAYLOAD: "[1]"}, {canary_settings.PAYLOAD: "{"}, {canary_settings.PAYLOAD: "[" * 100_000},
        {canary_settings.PAYLOAD: " " * 300_000}, {canary_settings.API_KEY: "a\r\nHost: b"},
        {canary_settings.MODEL: "m" * 5000}, {canary_settings.TEXT: "t" * 5000},
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_sent_is_a_usage_error(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It must not look like a server that is down."""
    assert probe("http://localhost:1", environment=environment) == probing.USAGE
    said = capsys.readouterr().err
    assert error_codes.CANARY_BAD_SETTING in said
    assert next(iter(environment)) in said


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host:1",
        "http://",
        "http://u:p@host",
        "http://h:99999",
        "http://h/?q",
        "http://h/a b",
        "http://[",
        "http://h\r\nx",
    ],
)
def test_an_address_that_is_none_is_a_usage_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The kubelet restarts nothing for a typing error, and the sentence says what to write."""
    assert probe(url) == probing.USAGE
    assert error_codes.CANARY_BAD_URL in capsys.readouterr().err


def test_ready_only_when_all_listed_endpoints_answered(
    server: model_server.ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A divided server is of use only with both of its halves."""
    server.answer("POST /generate", GENERATED)
    with model_server.running() as other:
        urls = (server.url, other.url, "--engine", "sglang")
        assert probe(*urls) == probing.NOT_READY
        assert error_codes.CANARY_STATUS in capsys.readouterr().out
        other.answer("POST /generate", GENERATED)
        assert probe(*urls) == probing.READY


def test_it_waits_until_the_last_one_is_ready_and_asks_the_first_once(server: model_server.ModelServer) -> None:
    """A model loads for minutes; the ones that are ready are not asked for tokens meanwhile."""
    server.answer("POST /generate", GENERATED)
    with model_server.running() as other:
        tries: list[int] = []

        def later(_: bytes) -> model_server.Reply:
            tries.append(1)
            return model_server.json_reply(GENERATED) if len(tries) == 3 else model_server.json_reply({}, 503)

        other.answers["POST /generate"] = later
        assert probe(server.url, other.url, "--engine", "sglang", "--wait-seconds", "60") == probing.READY
        assert len(tries) == 3
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "inputs",
    [
        None, [], "text", [{}] * 100, [7], [{"name": "x", "datatype": "FP32"}],
        [{"name": "x", "datatype": ["FP32"], "shape": [1]}], [{"name": "x", "datatype": "FP32", "shape": ["a"]}],
        [{"name": "x", "datatype": "FP32", "shape": [True]}],
        [{"name": "x", "datatype": "FP32", "shape": [10**9, 10**9]}],
        [{"name": ["x"], "datatype": "FP32", "shape": [1]}], [{"name": "x", "datatype": "OTHER", "shape": [1]}],
    ],
)  # fmt: skip
def test_metadata_of_which_no_request_can_be_made_is_a_refusal(
    inputs: Any, server: model_server.ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server may answer with anything; the probe must not break, nor send gigabytes of zeros."""
    server.answer("GET /v2/models/tiny", {"name": "tiny", "inputs": inputs})
    status = probe(server.url, "--engine", "kserve", environment={canary_settings.MODEL: "tiny"})
    assert status == probing.NOT_READY
    assert error_codes.CANARY_INVALID_ANSWER in capsys.readouterr().out
    assert [what for what, _, _ in server.asked] == ["GET /v2/models/tiny"]


COUNTERS = (
    "# HELP vllm:generation_tokens_total Number of generation tokens processed.\n"
    "# TYPE vllm:generation_tokens_total counter\n"
    'vllm:generation_tokens_total{engine="0",model_name="a } b"} %d\n'
    'vllm:generation_tokens_total{engine="1",model_name="b"} 5.0 1700000000000\n'
    "vllm:request_success_total nan\nvllm:request_success_total\nother_total 9\n"
)


def test_a_server_that_serves_users_is_not_probed(server: model_server.ModelServer) -> None:
    """Its traffic proves more than a canary, which would wait in the same queue."""
    tokens = iter(range(10, 100))
    server.answers["GET /metrics"] = lambda _: (200, {}, (COUNTERS % next(tokens)).encode())
    assert probe(server.url, "--engine", "vllm", "--traffic-window-seconds", "0.01") == probing.READY
    assert [what for what, _, _ in server.asked] == ["GET /metrics", "GET /metrics"]


@pytest.mark.parametrize("metrics", [COUNTERS % 10, "", "garbage \x00", None])
def test_an_idle_server_or_one_without_metrics_is_probed(metrics: str | None, server: model_server.ModelServer) -> None:
    """No traffic says nothing about readiness."""
    if metrics is not None:
        server.answers["GET /metrics"] = lambda _: (200, {}, metrics.encode())
    server.answer("POST /v1/completions", CHOICES)
    assert probe(server.url, "--engine", "vllm", "--traffic-window-seconds", "0.01") == probing.READY
    assert server.asked[-1][0] == "POST /v1/completions"


def test_counters_are_read_as_prometheus_reads_them() -> None:
    """Labels may have any text of a user."""
    assert asking.traffic((COUNTERS % 10).encode(), engines.ENGINES["vllm"].traffic_series) == 15
    assert asking.traffic(b"other 1\n", ("vllm:generation_tokens_total",)) is None


def test_the_image_is_a_png() -> None:
    """By its signature and size; a decoder's work is the server's."""
    image = sglang_api.grey_png(32)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert image[16:24] == bytes((0, 0, 0, 32)) * 2
    assert len(base64.b64encode(image)) < 400


def test_the_help_lists_every_variable_that_is_read() -> None:
    """People find them where they look first."""
    parser = argparse.ArgumentParser()
    probing.add_arguments(parser)
    text = parser.format_help()
    names = [
        value for name, value in vars(canary_settings).items() if name.isupper() and str(value).startswith("HAMI_")
    ]
    assert len(names) == 6
    assert all(name in text for name in names)


def test_probing_imports_no_third_party_module() -> None:
    """An exec probe runs in any container, every few seconds."""
    code = (
        "import sys; before = set(sys.modules); import gpu_sharing.workload.probing;"
        "from gpu_sharing.workload.canaries import asking, engines;"
        "print(*sorted({one.partition('.')[0] for one in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["gpu_sharing"]
