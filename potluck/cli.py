"""The root of `potluck`: one table of commands, each imported only when it is called.

Exit codes are those of `potluck.errors`: 0 done, 2 the call or its input is wrong, 3 nobody answers,
4 a peer said no, 5 disk, memory or port, 6 damaged bytes, 70 our mistake, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol, cast

COMMANDS: dict[str, str] = {
    "up": "start a coordinator and print a join string",
    "invite": "print more join strings",
    "join": "start an expert node on this machine",
    "router": "start a router, which answers requests",
    "run": "start, watch, cancel and list training runs",
    "nodes": "what every node does now, and how fast",
    "ledger": "which steps are committed, and what crossed the wire",
    "eval": "the table of a finished run",
    "plan": "size a run for this machine, or check a spec",
    "route": "which expert would take this text",
    "score": "log-probabilities of a text",
    "generate": "continue a text",
    "report": "write report.json and report.html of a finished run",
    "demo": "train and serve a small mixture on this machine",
    "down": "stop every daemon started under this home",
}
EXIT_INTERRUPTED = 130
EXIT_BUG = 70


class Command(Protocol):
    """What a module in `potluck.commands` offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        _root_parser().print_help()
        return 0
    if words[0] == "--version":
        sys.stdout.write(_version() + "\n")
        return 0
    if words[0] not in COMMANDS:
        _root_parser().error(f"unknown command {words[0]!r}: choose from {', '.join(COMMANDS)}")
    # Read by gRPC at import: a refused handshake is told in our words, not in its log lines.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GLOG_minloglevel", "2")
    command = cast(Command, importlib.import_module(f"potluck.commands.{words[0]}"))
    summary = COMMANDS[words[0]]
    parser = argparse.ArgumentParser(prog=f"potluck {words[0]}", description=summary[0].upper() + summary[1:] + ".")
    command.configure(parser)
    return _guarded(command, parser.parse_args(words[1:]))


def _guarded(command: Command, args: argparse.Namespace) -> int:
    from potluck.commands.output import Output
    from potluck.errors import PotluckError

    output = Output(as_json=getattr(args, "json", False))
    try:
        return command.run(args)
    except PotluckError as error:
        output.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        output.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`potluck nodes | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        output.note("this is a mistake in potluck; the lines above say where")
        return EXIT_BUG


def _root_parser() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMMANDS)
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="potluck",
        usage="potluck COMMAND [options]",
        description="Trains one language model as a mixture of experts that do not talk to each other.",
        epilog=f"commands:\n{listing}\n\n`potluck COMMAND --help` says more. `potluck --version` prints the version.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _version() -> str:
    from importlib.metadata import version

    return version("potluck")


if __name__ == "__main__":
    sys.exit(main())
