"""The serving child: holds models and answers work. All texts of a model get their next token by one forward.

    python -m expert_node.serving_child PARENT_PID

Commands: `load` {weights, model_json, path}, `unload` {weights}, `generate` {key, weights, mixture, ids, max_tokens,
temperature, top_k, top_p, seed, credit}, `score` {key, weights, mixture, ids}, `instantiate` {key, weights, mixture},
`credit` {key, tokens}, `cancel` {key}. A mixture is a list of [domain, weight]; only of a soup's models.
Answers: `loaded`/`load-failed` {weights}, `tokens` {key, ids, finish}, `scores` {key, log_probs},
`instantiated` {key, digest, cached, build_ms, coefficients}, `failed` {key, error_id, message}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from expert_node.frames import Message
from expert_node.parent_pipe import ParentPipe
from expert_node.soups import Made, Soups
from expert_node.worker import describe
from potluck.config import from_mapping
from potluck.errors import Refused
from potluck.lm.config import ModelConfig
from potluck.soup_names import Shares
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

    def __init__(self, command: Message, model: str, decoder: BatchDecoder) -> None:
        """
        Args:
            model: its key.
        """
        from potluck.lm.generate import Continuation, SamplingParams

        params = SamplingParams(
            max_tokens=int(command["max_tokens"]),
            temperature=command["temperature"],
            top_k=command["top_k"],
            top_p=command["top_p"] or 1.0,
            seed=command["seed"],
        )
        self.credit = int(command["credit"])
        self.model = model
        self.decoder = decoder
        self.text = Continuation(decoder.config, command["ids"], params)


class Scoring:
    """Log-probabilities of tokens 2..n, in rows of `context` tokens that overlap by one, as in evaluation."""

    def __init__(self, command: Message, model: str, decoder: Decoder) -> None:
        self.model = model
        self._decoder = decoder
        self._ids: list[int] = command["ids"]
        self._log_probs: list[float] = []

    def turn(self) -> list[float] | None:
        """Scores some rows; the answer comes with the last of them."""
        import torch

        from potluck.lm.loss import token_nll

        stride = self._decoder.config.context - 1
        for _ in range(ROWS_PER_TURN):
            start = len(self._log_probs)
            row = self._ids[start : start + stride + 1]
            if len(row) < 2:
                break
            self._log_probs += (-token_nll(self._decoder, torch.tensor([row]))[0]).tolist()
        if len(self._log_probs) + 1 < len(self._ids):
            return None
        return self._log_probs


@dataclass(frozen=True, kw_only=True)
class Making:
    """A request that waits for its model of a soup."""

    command: Message
    mixture: Shares


Job = Generation | Scoring | Making


class Server:
    """Models by the digest of their weights, or by their key in `Soups`; jobs by the node's key, oldest first."""

    def __init__(self, pipe: ParentPipe) -> None:
        self._pipe = pipe
        self._models: dict[str, Decoder] = {}
        self._decoders: dict[str, BatchDecoder] = {}
        """Of the models that go on with a text now; they outlive an `unload` for as long."""
        self._soups = Soups(available_bytes=lambda: int(psutil.virtual_memory().available))
        self._jobs: dict[int, Job] = {}

    def run(self) -> None:
        """Serves until the process is ended."""
        while True:
            if not any(not isinstance(job, Generation) or job.credit > 0 for job in self._jobs.values()):
                self._take(self._pipe.receive())
            while (message := self._pipe.poll()) is not None:
                self._take(message)
            self._round()

    def _round(self) -> None:
        """A model of a soup, some rows of every text to score, one token of every text to continue."""
        self._make()
        ready: dict[BatchDecoder, dict[int, Generation]] = {}
        for key, job in list(self._jobs.items()):
            if isinstance(job, Scoring):
                self._score(key, job)
            elif isinstance(job, Generation) and job.credit > 0:
                ready.setdefault(job.decoder, {})[key] = job
        for decoder, jobs in ready.items():
            self._step(decoder, jobs)

    def _make(self) -> None:
        """Begins the requests whose model of a soup is there, and makes one model that is not: texts under way are
        not held up by more of them."""
        has_made = False
        for key, job in list(self._jobs.items()):
            if not isinstance(job, Making):
                continue
            weights = job.command["weights"]
            try:
                made = self._soups.find(weights, job.mixture)
                is_cached = made is not None
                if made is None:
                    if has_made:
                        continue
                    has_made = True
                    made = self._soups.make(weights, job.mixture, in_use=self._models_in_use())
                self._begin(key, job.command, made, is_cached=is_cached)
            except Exception as error:  # One request's failure must not end the others.
                self._fail(key, error)

    def _models_in_use(self) -> set[str]:
        return {job.model for job in self._jobs.values() if not isinstance(job, Making)}

    def _begin(self, key: int, command: Message, made: Made, *, is_cached: bool) -> None:
        if command["type"] != "instantiate":
            self._jobs[key] = self._work(command, made.key, made.decoder)
            return
        answer = {"digest": made.digest, "build_ms": made.build_ms, "coefficients": list(made.coefficients)}
        self._end(key)
        self._pipe.send({"type": "instantiated", "key": key, "cached": is_cached, **answer})

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
                self._soups.unload(message["weights"])
            case "generate" | "score" | "instantiate":
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
            shape, path = json.loads(message["model_json"]), Path(message["path"])
            if "soup" in shape:
                self._soups.load(weights, shape, path)
            else:
                self._models[weights] = load_decoder(from_mapping(ModelConfig, shape), path)
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

    def _job(self, message: Message) -> Job:
        weights = message["weights"]
        if mixture := message.get("mixture"):
            return Making(command=message, mixture=self._soups.mixture(weights, mixture))
        if weights in self._soups or message["type"] == "instantiate":
            fix = "name a model of a soup, such as soup:DOMAIN=1"
            raise Refused("refused.no-mixture", f"no mixture of weights {weights[:12]} is named", fix)
        model = self._models.get(weights)
        if model is None:
            raise Refused("refused.not-served", f"weights {weights[:12]} are not served here", "try another replica")
        return self._work(message, weights, model)

    def _work(self, message: Message, key: str, model: Decoder) -> Generation | Scoring:
        """Args:
        key: the model's.
        """
        vocab = model.config.vocab
        wrong = next((i for i in message["ids"] if not 0 <= i < vocab), None)
        if wrong is not None:
            raise Refused("refused.bad-token", f"token {wrong} is outside [0, {vocab})", "use the run's tokenizer")
        if message["type"] == "generate":
            return self._generation(message, key, model)
        if not message["ids"]:
            raise Refused("refused.empty", "there are no tokens to score", "give at least one token")
        return Scoring(message, key, model)

    def _generation(self, message: Message, key: str, model: Decoder) -> Generation:
        from potluck.lm.decoding import BatchDecoder

        decoder = self._decoders[key] if key in self._decoders else BatchDecoder(model)
        generation = Generation(message, key, decoder)
        self._decoders[key] = decoder
        return generation

    def _end(self, key: int) -> None:
        """A job is over, whoever ended it; the last one of a model gives the memory of keys and values back."""
        job = self._jobs.pop(key, None)
        if isinstance(job, Generation):
            job.decoder.leave(job.text.window)
            if not any(isinstance(other, Generation) and other.decoder is job.decoder for other in self._jobs.values()):
                del self._decoders[job.model]

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
