"""Inputs made at random for everything that reads bytes from outside: `make fuzz`.

`parsers.py` is the table of parsers, `answers.py` of what our clients read from other servers, `listeners.py` of our
HTTP listeners, `kubelet_socket.py` of the gRPC socket; `exempt.py` names the readers without a target, each with a
reason. A short part with a fixed seed runs in `make test`.
"""
