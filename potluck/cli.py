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
from typing import NoReturn, Protocol, cast

from potluck.commands.output import Output
from potluck.errors import InvariantViolation, PotluckError, ResourceError, UsageError

COMMANDS: dict[str, str] = {
    "up": "start a coordinator and print a join string",
    "invite": "print more join strings",
    "join": "start an expert node on this machine",
    "router": "start a router, which answers requests",
    "run": "start, watch, pause, cancel and list training runs",
    "mix": "how much of each domain a run reads: show, set, propose",
    "why": "what a decision about a run rests on, in words",
    "nodes": "what every node does now, and how fast",
    "drain": "give a node no more work, so that it can be stopped",
    "ledger": "which steps are committed, and what crossed the wire",
    "sweep": "try learning rates, batch sizes and optimizers, each as a run",
    "reproduce": "a paper's claims at small scale, with a verdict on each",
    "eval": "the table of a finished run",
    "plan": "size a run for this machine, or check a spec",
    "route": "which expert would take this text",
    "score": "log-probabilities of a text",
    "generate": "continue a text",
    "cluster": "divide a corpus into clusters and show what they are about",
    "specialize": "train a specialist from a few examples of what it is for",
    "soup": "any specialist of a soup, by weights or by text like what it is for",
    "report": "write report.json and report.html of a finished run",
    "export": "write a published model as a Hugging Face folder",
    "demo": "train and serve a small mixture on this machine",
    "doctor": "check this machine, its connections and its state",
    "backup": "copy a coordinator's state to a folder or file",
    "restore": "make a coordinator's home from a backup",
    "down": "stop every daemon started under this home",
}
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Refuses arguments as every other refusal is told: with an id and a fix, and as JSON where that was asked for."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("usage.bad-arguments", message, " ".join(self.format_usage().split()))


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
    output = Output(as_json="--json" in words)
    if words[0] not in COMMANDS:
        fix = f"choose from {', '.join(COMMANDS)}"
        return _told(UsageError("usage.bad-arguments", f"unknown command {words[0]!r}", fix), output)
    # Read by gRPC at import: a refused handshake is told in our words, not in its log lines.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GLOG_minloglevel", "2")
    command = cast(Command, importlib.import_module(f"potluck.commands.{words[0]}"))
    summary = COMMANDS[words[0]]
    parser = Parser(prog=f"potluck {words[0]}", description=summary[0].upper() + summary[1:] + ".")
    command.configure(parser)
    return _guarded(command, parser, words[1:], output)


def _guarded(command: Command, parser: argparse.ArgumentParser, words: Sequence[str], output: Output) -> int:
    try:
        return command.run(parser.parse_args(words))
    except PotluckError as error:
        return _told(error, output)
    except KeyboardInterrupt:
        output.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`potluck nodes | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = str(error.filename) if error.filename is not None else "a file or socket"
        fix = "see that the path is of the right kind, may be written, and has room"
        return _told(ResourceError("resource.io", f"{where}: {error.strerror or error}", fix), output)
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        fix = "this is a mistake in potluck; the traceback on stderr says where"
        return _told(InvariantViolation("bug.unexpected", what, fix), output)


def _told(error: PotluckError, output: Output) -> int:
    output.error(error)
    return error.exit_code


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
