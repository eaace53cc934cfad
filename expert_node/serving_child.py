"""The serving child: holds models and answers work. All texts of a model get their next token by one forward.

    python -m expert_node.serving_child PARENT_PID

Commands: `load` {weights, model_json, path}, `unload` {weights}, `generate` {key, weights, ids, max_tokens,
temperature, top_k, top_p, seed, credit}, `score` {key, weights, ids}, `credit` {key, tokens}, `cancel` {key}.
Answers: `loaded`/`load-failed` {weights}, `tokens` {key, ids, finish}, `scores` {key, log_probs},
`failed` {key, error_id, message}.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
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
    from potluck.lm.decoding import BatchDecoder
    from potluck.lm.model import Decoder

ROWS_PER_TURN = 8
"""Rows scored between two looks at the other requests."""
PREFILL_TOKENS = 512
"""Prompt tokens run between two steps of the texts that are under way; a longer prompt comes alone."""
MAX_JOBS = 1024

log = logger("expert_node.serving")


class Generation:
    """One text being continued; takes part in a step only while its reader has given credit."""

    def __init__(self, command: Message, decoder: BatchDecoder) -> None:
        from potluck.lm.generate import Continuation, SamplingParams

        params = SamplingParams(
            max_tokens=int(command["max_tokens"]),
            temperature=command["temperature"],
            top_k=command["top_k"],
            top_p=command["top_p"] or 1.0,
            seed=command["seed"],
        )
        self.credit = int(command["credit"])
        self.weights: str = command["weights"]
        self.decoder = decoder
        self.text = Continuation(decoder.config, command["ids"], params)


class Scoring:
    """Log-probabilities of tokens 2..n, in rows of `context` tokens that overlap by one, as in evaluation."""

    def __init__(self, command: Message, model: Decoder) -> None:
        self._model = model
        self._ids: list[int] = command["ids"]
        self._log_probs: list[float] = []

    def turn(self) -> list[float] | None:
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
            return None
        return self._log_probs


class Server:
    """Models by the digest of their weights, jobs by the node's key, oldest first."""

    def __init__(self, pipe: ParentPipe) -> None:
        self._pipe = pipe
        self._models: dict[str, Decoder] = {}
        self._decoders: dict[str, BatchDecoder] = {}
        """Of the models that go on with a text now; they outlive an `unload` for as long."""
        self._jobs: dict[int, Generation | Scoring] = {}

    def run(self) -> None:
        """Serves until the process is ended."""
        while True:
            if not any(isinstance(job, Scoring) or job.credit > 0 for job in self._jobs.values()):
                self._take(self._pipe.receive())
            while (message := self._pipe.poll()) is not None:
                self._take(message)
            self._round()

    def _round(self) -> None:
        """Some rows of every text to score, one token of every text to continue."""
        ready: dict[BatchDecoder, dict[int, Generation]] = {}
        for key, job in list(self._jobs.items()):
            if isinstance(job, Scoring):
                self._score(key, job)
            elif job.credit > 0:
                ready.setdefault(job.decoder, {})[key] = job
        for decoder, jobs in ready.items():
            self._step(decoder, jobs)

    def _score(self, key: int, job: Scoring) -> None:
        try:
            log_probs = job.turn()
        except Exception as error:  # One request's failure must not end the others.
            self._fail(key, error)
            return
        if log_probs is not None:
            self._end(key)
            self._pipe.send({"type": "scores", "log_probs": log_probs, "key": key})

    def _step(self, decoder: BatchDecoder, jobs: dict[int, Generation]) -> None:
        """One token for each of the oldest jobs, as many as the decoder takes; each fails for itself."""
        jobs = self._prefilled(decoder, dict(islice(jobs.items(), decoder.slots)))
        if not jobs:
            return
        try:
            logits = decoder.logits([job.text.window for job in jobs.values()])
        except Exception as error:  # What the forward cannot do it can do for none of them.
            for key in jobs:
                self._fail(key, error)
            return
        for (key, job), row in zip(jobs.items(), logits, strict=True):
            try:
                token = job.text.take(row)
            except Exception as error:  # Such as logits that are not finite.
                self._fail(key, error)
                continue
            job.credit -= 1
            finish = job.text.finish
            if finish:
                self._end(key)
            self._pipe.send({"type": "tokens", "ids": [token], "finish": finish, "key": key})

    def _prefilled(self, decoder: BatchDecoder, jobs: dict[int, Generation]) -> dict[int, Generation]:
        """Those whose last token can be run now. New prompts beyond a round's share wait for the next round."""
        found: dict[int, Generation] = {}
        num_run = 0
        for key, job in jobs.items():
            missing = job.text.window.num_missing
            if missing and num_run and num_run + missing > PREFILL_TOKENS:
                continue
            num_run += missing
            try:
                decoder.prefill(job.text.window)
            except Exception as error:  # Such as too little memory for one more text.
                self._fail(key, error)
            else:
                found[key] = job
        return found

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
                self._end(message["key"])
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
            return self._generation(message, model)
        if not message["ids"]:
            raise Refused("refused.empty", "there are no tokens to score", "give at least one token")
        return Scoring(message, model)

    def _generation(self, message: Message, model: Decoder) -> Generation:
        from potluck.lm.decoding import BatchDecoder

        weights = message["weights"]
        decoder = self._decoders[weights] if weights in self._decoders else BatchDecoder(model)
        generation = Generation(message, decoder)
        self._decoders[weights] = decoder
        return generation

    def _end(self, key: int) -> None:
        """A job is over, whoever ended it; the last one of a model gives the memory of keys and values back."""
        job = self._jobs.pop(key, None)
        if isinstance(job, Generation):
            job.decoder.leave(job.text.window)
            if not any(isinstance(other, Generation) and other.decoder is job.decoder for other in self._jobs.values()):
                del self._decoders[job.weights]

    def _fail(self, key: int, error: Exception) -> None:
        self._end(key)
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
