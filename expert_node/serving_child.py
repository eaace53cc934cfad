"""The serving child: holds models, answers generate and score work, one token of each in turn.

    python -m expert_node.serving_child PARENT_PID

Commands: `load` {weights, model_json, path}, `unload` {weights}, `generate` {key, weights, ids, max_tokens,
temperature, top_k, top_p, seed, credit}, `score` {key, weights, ids}, `credit` {key, tokens}, `cancel` {key}.
Answers: `loaded`/`load-failed` {weights}, `tokens` {key, ids, finish}, `scores` {key, log_probs},
`failed` {key, error_id, message}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from expert_node.frames import Message
from expert_node.parent_pipe import ParentPipe
from expert_node.worker import describe
from potluck.config import from_mapping
from potluck.errors import Refused
from potluck.lm.config import ModelConfig
from potluck.telemetry import logger

if TYPE_CHECKING:
    from potluck.lm.model import Decoder

EOD = 0
ROWS_PER_TURN = 8
"""Rows scored between two looks at the other requests."""
MAX_JOBS = 1024

log = logger("expert_node.serving")


class Generation:
    """One text being continued; takes a turn only while its reader has given credit."""

    def __init__(self, command: Message, model: Decoder) -> None:
        from potluck.lm.generate import SamplingParams, generate

        self.credit = int(command["credit"])
        self._left = int(command["max_tokens"])
        params = SamplingParams(
            max_tokens=self._left,
            temperature=command["temperature"],
            top_k=command["top_k"],
            top_p=command["top_p"] or 1.0,
            seed=command["seed"],
        )
        self._tokens: Iterator[int] = generate(model, command["ids"], params, eod=EOD)

    @property
    def ready(self) -> bool:
        return self.credit > 0

    def turn(self) -> tuple[Message, bool]:
        """The next answer, and whether it is the last."""
        token = next(self._tokens)
        self.credit -= 1
        self._left -= 1
        finish = "eod" if token == EOD else "" if self._left else "length"
        return {"type": "tokens", "ids": [token], "finish": finish}, bool(finish)


class Scoring:
    """Log-probabilities of tokens 2..n, in rows of `context` tokens that overlap by one, as in evaluation."""

    ready = True

    def __init__(self, command: Message, model: Decoder) -> None:
        self._model = model
        self._ids: list[int] = command["ids"]
        self._log_probs: list[float] = []

    def turn(self) -> tuple[Message | None, bool]:
        """Scores some rows; the answer comes with the last of them."""
        import torch

        from potluck.lm.loss import token_nll

        stride = self._model.config.context - 1
        for _ in range(ROWS_PER_TURN):
            start = len(self._log_probs)
            row = self._ids[start : start + stride + 1]
            if len(row) < 2:
                break
            self._log_probs += (-token_nll(self._model, torch.tensor([row]))[0]).tolist()
        if len(self._log_probs) + 1 < len(self._ids):
            return None, False
        return {"type": "scores", "log_probs": self._log_probs}, True


class Server:
    """Models by the digest of their weights, jobs by the node's key."""

    def __init__(self, pipe: ParentPipe) -> None:
        self._pipe = pipe
        self._models: dict[str, Decoder] = {}
        self._jobs: dict[int, Generation | Scoring] = {}

    def run(self) -> None:
        """Serves until the process is ended."""
        while True:
            if not any(job.ready for job in self._jobs.values()):
                self._take(self._pipe.receive())
            while (message := self._pipe.poll()) is not None:
                self._take(message)
            for key, job in list(self._jobs.items()):
                if job.ready:
                    self._turn(key, job)

    def _turn(self, key: int, job: Generation | Scoring) -> None:
        try:
            answer, last = job.turn()
        except Exception as error:  # One request's failure must not end the others.
            self._fail(key, error)
            return
        if last:
            del self._jobs[key]
        if answer is not None:
            self._pipe.send({**answer, "key": key})

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "load":
                self._load(message)
            case "unload":
                self._models.pop(message["weights"], None)
            case "generate" | "score":
                self._start(message)
            case "credit":
                job = self._jobs.get(message["key"])
                if isinstance(job, Generation):
                    job.credit += message["tokens"]
            case "cancel":
                self._jobs.pop(message["key"], None)
            case other:
                raise AssertionError(f"the node said {other!r}")

    def _load(self, message: Message) -> None:
        from potluck.lm.model import load_decoder

        weights = message["weights"]
        try:
            config = from_mapping(ModelConfig, json.loads(message["model_json"]))
            self._models[weights] = load_decoder(config, Path(message["path"]))
        except Exception as error:  # Told to the router: the slot is not served here.
            log.failure("load-failed", error, weights=weights)
            error_id, text = describe(error)
            self._pipe.send({"type": "load-failed", "weights": weights, "error_id": error_id, "message": text})
        else:
            self._pipe.send({"type": "loaded", "weights": weights})

    def _start(self, message: Message) -> None:
        key = message["key"]
        try:
            if len(self._jobs) >= MAX_JOBS:
                raise Refused("refused.busy", f"{MAX_JOBS} requests are open here", "try another replica, or later")
            self._jobs[key] = self._job(message)
        except Exception as error:
            self._fail(key, error)

    def _job(self, message: Message) -> Generation | Scoring:
        model = self._models.get(message["weights"])
        if model is None:
            what = f"weights {message['weights'][:12]} are not served here"
            raise Refused("refused.not-served", what, "try another replica")
        vocab = model.config.vocab
        wrong = next((i for i in message["ids"] if not 0 <= i < vocab), None)
        if wrong is not None:
            raise Refused("refused.bad-token", f"token {wrong} is outside [0, {vocab})", "use the run's tokenizer")
        if message["type"] == "generate":
            return Generation(message, model)
        if not message["ids"]:
            raise Refused("refused.empty", "there are no tokens to score", "give at least one token")
        return Scoring(message, model)

    def _fail(self, key: int, error: Exception) -> None:
        self._jobs.pop(key, None)
        error_id, text = describe(error)
        if error_id.startswith("bug."):
            log.failure("request-failed", error, key=key)
        self._pipe.send({"type": "failed", "key": key, "error_id": error_id, "message": text})


def main() -> None:
    pipe = ParentPipe(int(sys.argv[1]))
    import torch

    torch.set_num_threads(1)
    Server(pipe).run()


if __name__ == "__main__":
    main()
