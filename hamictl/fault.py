"""`hamictl fault`: inject faults on purpose, list them, and recover them."""

import argparse
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from fault_injector import api_types
from gpu_sharing.core import errors, faults
from hamictl import failures, fault_client, flags, output, reader

_WIDE_ONLY = ("BACKEND", "FIELDS", "CAUSE")
_XID = "xid-"
_MOST_NAMED = 2
"""Kinds of faults that the help of a field names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flags: one for each field of each kind of fault, from the table of kinds."""
    parser.add_argument("action", metavar="ACTION", help=f"one of {', '.join(_ACTIONS)}")
    parser.add_argument("names", nargs="*", metavar="KIND|ID", help="a kind for inject, ids for show and recover")
    for name, text in _field_texts().items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=f"field_{name}", metavar="VALUE", help=text)
    parser.add_argument(
        "--seconds", metavar="S", dest="field_duration_seconds",
        help="recover it by itself after so many seconds (default: when hamictl fault recover is called)",
    )  # fmt: skip
    parser.add_argument("--backend", dest="field_backend", metavar="NAME", help="which backend injects it")
    parser.add_argument(
        "--faults",
        default="",
        metavar="URL",
        help=f"the service (default: ${fault_client.URL_VARIABLE}, else by kubectl port-forward into its pod)",
    )
    parser.add_argument("--token-file", type=pathlib.Path, metavar="FILE", help="a bearer token for --faults")
    parser.add_argument("--ca-file", type=pathlib.Path, metavar="FILE", help="the authority of its certificate")
    flags.add_cluster(parser)
    flags.add_output(parser)


def _field_texts() -> dict[str, str]:
    """Return what each field of a request means, by its name; where it differs, with the kinds of faults."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for kind in faults.KINDS.values():
        for parameter in kind.fields:
            text = (parameter.text + (f", in {parameter.unit}" if parameter.unit else "")).replace("%", "%%")
            kinds.setdefault(parameter.name, {}).setdefault(text, []).append(kind.name)
    return {
        name: next(iter(texts))
        if len(texts) == 1 and len(next(iter(texts.values()))) > _MOST_NAMED
        else "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
        for name, texts in kinds.items()
    }


def run(options: argparse.Namespace) -> int:
    """Run one action. Returns the exit status."""
    action = _ACTIONS.get(options.action)
    if action is None:
        hint = f"there are {', '.join(_ACTIONS)}"
        raise failures.unknown(
            f"no action {options.action}", options.action, _ACTIONS, hint=hint, status=failures.FAILED
        )
    return action(options)


def _reaching(options: argparse.Namespace) -> Any:
    where = reader.Address(
        token_file=options.token_file,
        ca_file=options.ca_file,
        kubeconfig=options.kubeconfig,
        context=options.context,
        system_namespace=options.system_namespace,
        reachable=bool(flags.kubeconfigs(options)),
    )
    return fault_client.reaching(where, options.faults)


def _inject(options: argparse.Namespace) -> int:
    """Inject a fault. What is wrong with the request is found before the service is called."""
    if len(options.names) != 1:
        raise failures.CommandFailed("inject needs one KIND", "hamictl fault kinds lists them")
    request = _request(options)
    body = {**request.values, "kind": request.kind.name, "duration_seconds": request.duration_seconds}
    body |= {"backend": request.backend} if request.backend else {}
    with _reaching(options) as service:
        fault = service.inject(request.kind.group.value, body)
    if flags.style(options).is_table:
        ends = f", for {fault.duration_seconds} s" if fault.duration_seconds else ""
        print(f"{fault.id} is injected: {fault.kind} on {fault.target}{ends}")
        print(f"hamictl fault recover {fault.id} ends it")
    else:
        print(output.render(fault, [], flags.style(options), names=[f"fault/{fault.id}"]))
    return 0


def _request(options: argparse.Namespace) -> faults.Request:
    """Return the request of the command line.

    Raises:
        CommandFailed: It is invalid, with every problem.
    """
    name = options.names[0].lower()
    given = {key[6:]: text for key, text in vars(options).items() if key.startswith("field_") and text is not None}
    if name.startswith(_XID) and name not in faults.KINDS:
        given["xid"], name = name.removeprefix(_XID), "xid"
    try:
        kind = faults.kind_of(name)
        numbers = {one.name for one in (*kind.fields, *faults.COMMON) if one.is_number}
        values = {key: _number(text) if key in numbers else text for key, text in given.items()}
        return faults.read_request({**values, "kind": name})
    except errors.FaultRefused as refused:
        hint = "hamictl fault kinds lists the kinds with their fields; a field is a flag, such as --share-percent"
        raise failures.CommandFailed(f"{refused.code}: {refused}", hint, failures.NEGATIVE) from refused


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _list(options: argparse.Namespace) -> int:
    with _reaching(options) as service:
        _print(service.faults(), options)
    return 0


def _show(options: argparse.Namespace) -> int:
    if len(options.names) != 1:
        raise failures.CommandFailed("show needs one ID", "hamictl fault list lists them")
    with _reaching(options) as service:
        fault = service.fault(options.names[0])
    if flags.style(options).form == "table":
        for name, text in _details(fault, time.time()).items():
            print(f"{name:<12}{text}".rstrip())
    else:
        _print([fault], options, fault)
    return 0


def _recover(options: argparse.Namespace) -> int:
    if not options.names:
        raise failures.CommandFailed("recover needs an ID", "hamictl fault cleanup recovers all")
    with _reaching(options) as service:
        for fault_id in options.names:
            fault = service.recover(fault_id)
            print(f"{fault.id} is {fault.state}: {fault.kind} on {fault.target}")
    return 0


def _cleanup(options: argparse.Namespace) -> int:
    with _reaching(options) as service:
        recovered = service.cleanup()
    for fault in recovered:
        print(f"{fault.id} is {fault.state}: {fault.kind} on {fault.target}")
    if not recovered:
        print("no fault is in effect")
    return 0


def _kinds(options: argparse.Namespace) -> int:
    """Print the table of kinds; it is the same for every service, which may support a part of it only."""
    kinds = list(faults.KINDS.values())
    rows = [
        {
            "KIND": kind.name,
            "GROUP": kind.group.value,
            "FIELDS": " ".join(_shown_field(one) for one in kind.fields) or "-",
            "MEANING": kind.text,
        }
        for kind in kinds
    ]
    value = [
        {
            "kind": kind.name,
            "group": kind.group.value,
            "meaning": kind.text,
            "needs_consent": kind.needs_consent,
            "fields": [
                {"name": one.name, "meaning": one.text, "accepted": one.accepted, "default": one.default}
                for one in kind.fields
            ],
        }
        for kind in kinds
    ]
    names = [kind.name for kind in kinds]
    output.print_rows(value, rows, flags.style(options), "there are no kinds", names=names)
    return 0


def _shown_field(parameter: faults.Parameter) -> str:
    flag = f"--{parameter.name.replace('_', '-')}"
    return flag if parameter.default is None else f"[{flag}]"


def _print(recorded: list[api_types.Fault], options: argparse.Namespace, value: Any = None) -> None:
    now = time.time()
    rows = [_row(fault, now) for fault in recorded]
    names = [f"fault/{fault.id}" for fault in recorded]
    output.print_rows(
        value or recorded, rows, flags.style(options), "no faults are recorded", wide_only=_WIDE_ONLY, names=names
    )


def _row(fault: api_types.Fault, now: float) -> dict[str, str]:
    ends_at = fault.created_at + fault.duration_seconds
    is_timed = fault.duration_seconds and fault.state not in ("failed", "recovered")
    return {
        "ID": fault.id,
        "KIND": fault.kind,
        "TARGET": fault.target,
        "STATE": fault.state,
        "AGE": output.age(now - fault.created_at),
        "ENDS IN": output.age(ends_at - now) if is_timed else "-",
        "BACKEND": fault.backend,
        "FIELDS": _fields(fault.values),
        "CAUSE": fault.cause or "-",
    }


def _fields(values: Mapping[str, int | str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items() if value != "") or "-"


def _details(fault: api_types.Fault, now: float) -> dict[str, str]:
    row = _row(fault, now)
    return {name.capitalize(): text for name, text in row.items()}


_ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "inject": _inject,
    "list": _list,
    "show": _show,
    "recover": _recover,
    "cleanup": _cleanup,
    "kinds": _kinds,
}
