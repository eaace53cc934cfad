"""Logs are facts with fields, one a line on stderr: ``key=value`` for people, JSON with ``POTLUCK_LOG=json``.

Facts are logged where things happen, on change. Pure code logs nothing: it returns the reason.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback


class Logger:
    def __init__(self, name: str) -> None:
        self._name = name

    def fact(self, event: str, **fields: object) -> None:
        """Writes one fact, e.g. ``log.fact("lease-granted", node=node, fence=7)``."""
        now = time.time()
        if os.environ.get("POTLUCK_LOG") == "json":
            line = json.dumps({"time": round(now, 3), "logger": self._name, "event": event, **fields}, default=str)
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(now))
            words = "".join(f" {key}={_for_people(value)}" for key, value in fields.items())
            line = f"{clock} {self._name} {event}{words}"
        # One write, so that lines of several threads do not mix.
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # a closed terminal must not stop a daemon
            pass

    def failure(self, event: str, error: BaseException, **fields: object) -> None:
        """Writes a fact with the error and its traceback; for the outermost handlers of loops and calls."""
        trace = "".join(traceback.format_exception(error))
        self.fact(event, **fields, error=f"{type(error).__name__}: {error}", traceback=trace)


def logger(name: str) -> Logger:
    return Logger(name)


def _for_people(value: object) -> str:
    text = str(value)
    if "\n" in text:
        return "\n" + text.rstrip()
    return json.dumps(text, ensure_ascii=False) if " " in text or text == "" else text
