"""The runner's command line, on the host:

    serve    run until told to stop (SIGTERM)
    control  pass one message from standard input to the runner of this folder, print its answer (knock.py, at once)
    measure  measure this host with layers of the model, print JSON
    stream   read this host's spare capacity and the runner's state, a line of JSON each, until nobody reads
    links    measure the links to other hosts that do so too, print a line of JSON each
    receive  take files from standard input
    give     send sealed files to another host
    take     receive them
    tidy     remove files that are of no more use, print JSON
    examine  what this host has and lacks, print JSON
    meet     which other hosts are reached from here while they meet too, print JSON

Must not know: the controller; a person never calls it by hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("runner")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="runner", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    serve = verbs.add_parser("serve")
    serve.add_argument("--host", required=True)
    serve.add_argument("--deployment", required=True)
    serve.add_argument("--threads", type=int, default=0)
    serve.add_argument("--device", default="")
    for name in ("measure", "stream", "links", "examine", "meet", "receive", "give", "take", "tidy"):
        verbs.add_parser(name).add_argument("arguments", type=json.loads, nargs="?", default={})
    options = parser.parse_args(arguments)
    if options.verb == "serve":
        return _serve(options)
    if options.verb == "receive":
        from .arrivals import receive

        with open(0, "rb", buffering=0, closefd=False) as source:
            return receive(options.arguments, source)
    if options.verb in ("give", "take"):
        from . import peers

        return {"give": peers.give, "take": peers.take}[options.verb](options.arguments) or 0
    if options.verb == "stream":
        from .probe import stream

        stream(options.arguments)
    elif options.verb == "links":
        from .links import measure

        for found in measure(options.arguments):
            print(json.dumps(found), flush=True)
    else:
        print(json.dumps(_measurement(options.verb)(options.arguments)))
    return 0


def _measurement(verb: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if verb == "measure":
        from .measure import measure

        return measure
    if verb == "tidy":
        from .arrivals import tidy

        return tidy
    from . import doctor

    return {"examine": doctor.examine, "meet": doctor.meet}[verb]


def _serve(options: argparse.Namespace) -> int:
    """Signals are waited for in the main thread; everything else has threads of its own."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s", stream=sys.stderr)
    folder = Path.cwd()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    import torch
    from transformers.utils import logging as transformers_logging

    from .control import Server
    from .core import Core
    from .devices import best_device
    from .dispatch import Dispatch
    from .gate import Gate
    from .measure import thread_count
    from .store import Store

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads or thread_count())
    device = options.device or best_device()
    store = Store(folder)
    core = Core(options.host, store, device)
    whom, key = (options.deployment, options.host), folder / "keys" / "controller.pub"
    gate = Gate(whom, key, lambda: store.read("serial"), lambda s: store.write("serial", s))
    server = Server(folder, Dispatch(core, gate, folder / "audit.log").handle)
    server.start()
    log.info("runner of %s for %s: %d threads, %s", options.host, options.deployment, torch.get_num_threads(), device)
    number = signal.sigwait({signal.SIGTERM, signal.SIGINT})
    log.info("stopping on %s", signal.Signals(number).name)
    server.close()
    core.close()
    (folder / "runner.pid").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
