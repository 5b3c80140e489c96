"""Each function that reads bytes of other programs has a target of `make fuzz`, or a reason why not."""

import ast
import pathlib
from collections.abc import Iterator

from tests.fuzz import answers, exempt, kubelet_socket, listeners, parsers

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("gpu_sharing", "scheduler_extender", "device_plugin", "fault_injector", "webui", "hamictl")
DECODERS = frozenset({
    "loads", "safe_load", "safe_load_all", "load", "FromString", "ParseFromString", "unpack", "iter_unpack",
    "b64decode", "DictReader", "json_as", "json_by", "yaml_documents", "parse_qs", "PEM_cert_to_DER_cert",
    "text_string_to_metric_families",
})  # fmt: skip
"""Calls that turn bytes into values; `decode` counts by its owner."""
OWNERS = frozenset({"json", "decoder", "_decoder", "msgspec", "json_text"})
NAMED = ("decode", "parse", "read")
RAW = frozenset({"str", "bytes", "pathlib.Path", "object", "str | bytes"})
"""Types of a first parameter that is not decoded yet."""
COVERED = frozenset(
    place
    for target in (*parsers.PARSERS, *answers.ANSWERS, *kubelet_socket.SOCKETS, *listeners.LISTENERS)
    for place in target.covers
)


def readers(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield `module:function` for each function that decodes, by what it calls, or by its name and first parameter."""
    for owner, function in functions(tree):
        name = f"{module}:{owner}{function.name}"
        if any(decodes(call) for call in ast.walk(function) if isinstance(call, ast.Call)) or is_named(function):
            yield name


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the functions of a module and the methods of its classes, each with the name of its class and a dot."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "", statement
        elif isinstance(statement, ast.ClassDef):
            methods = (one for one in statement.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            yield from ((f"{statement.name}.", method) for method in methods)


def decodes(call: ast.Call) -> bool:
    """Return whether a call turns bytes into values."""
    called = call.func
    if isinstance(called, ast.Name):
        return called.id in DECODERS
    if not isinstance(called, ast.Attribute):
        return False
    owner = ast.unparse(called.value).rpartition(".")[2]
    return called.attr in DECODERS or (called.attr in ("decode", "value") and owner in OWNERS)


def is_named(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a public function's name says that it reads, and its first parameter is not decoded yet."""
    first = next((one for one in function.args.args if one.arg != "self"), None)
    kind = ast.unparse(first.annotation) if first is not None and first.annotation is not None else ""
    return function.name.startswith(NAMED) and kind in RAW


def every_reader() -> set[str]:
    found: set[str] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.update(readers(module, ast.parse(path.read_text())))
    return found


def modules_of(place: str) -> tuple[str, str]:
    """Return the two ways in which a target may cover a reader: alone, and with its whole module."""
    return place, place.partition(":")[0]


def test_each_reader_of_outside_bytes_is_fuzzed_or_says_why_not() -> None:
    """The parser that was forgotten is the one that ends the process of a customer."""
    missing = [
        place for place in sorted(every_reader()) if not {*modules_of(place)} & (COVERED | exempt.REASONS.keys())
    ]

    assert missing == [], "add a target to tests/fuzz, or a reason to tests/fuzz/exempt.py"


def test_targets_and_reasons_name_readers_that_exist() -> None:
    """A target whose function was renamed covers nothing, and a reason without its function misleads."""
    wrong = []
    for place in sorted(COVERED | exempt.REASONS.keys()):
        module, _, name = place.partition(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        names = (
            {f"{owner}{one.name}" for owner, one in functions(ast.parse(path.read_text()))} if path.exists() else set()
        )
        if not path.exists() or (name and name not in names):
            wrong.append(place)

    assert wrong == []
    assert not COVERED & exempt.REASONS.keys()
    assert all(len(reason) > 20 for reason in exempt.REASONS.values())


def test_a_new_reader_is_found_by_its_calls_and_by_its_name() -> None:
    """Else the list is empty because the search is blind."""
    source = "def a(x):\n  return json.loads(x)\nclass B:\n  def _c(self, x):\n    return decoding.json_as(K, x)\n"
    source += "def decode_d(text: str) -> int: ...\ndef read_e(client: Client) -> int: ...\n"
    source += "def f(x): return _decoder.decode(x)"

    assert list(readers("m", ast.parse(source))) == ["m:a", "m:B._c", "m:decode_d", "m:f"]
