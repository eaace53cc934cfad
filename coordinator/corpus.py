"""From a corpus manifest in the store to the few facts that a plan needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.collector import hold
from coordinator.plans.base import CorpusFacts
from potluck.errors import CorpusError
from potluck.ids import NO_DIGEST, Digest, is_digest, short
from potluck.jsontext import read_json
from potluck.net.blobs.store import BlobStore

MAX_MANIFEST_BYTES = 16 << 20
_PUT_AGAIN = "start the run with `potluck run start`, which puts the corpus first"


def read_manifest(corpus: Digest, store: BlobStore) -> Mapping[str, Any]:
    """The corpus manifest, if it and every shard it names are in the store; they stay there from here on.

    Raises:
        CorpusError: ``corpus.not-at-hub``, ``corpus.incomplete`` or ``corpus.bad-manifest``.
    """
    if not is_digest(corpus) or not store.has(corpus):
        raise CorpusError("corpus.not-at-hub", f"the store has no corpus manifest {short(corpus)}", _PUT_AGAIN)
    if store.size(corpus) > MAX_MANIFEST_BYTES:
        raise _bad_manifest(corpus, f"it has {store.size(corpus)} bytes")
    try:
        manifest = read_json(store.path(corpus).read_bytes())
        shards = [shard["digest"] for shard in manifest["shards"]]
        if manifest["kind"] != "corpus" or not all(isinstance(name, str) for name in manifest["sources"]):
            raise ValueError("it is of another kind")
        if not all(isinstance(shard, str) and is_digest(shard) for shard in shards):
            raise ValueError("a shard is no digest")
    except (ValueError, KeyError, TypeError) as error:
        raise _bad_manifest(corpus, f"{type(error).__name__} {error}") from None
    missing = hold(store, (corpus, *shards))
    if missing:
        what = f"{len(missing)} of {len(shards)} shards of corpus {short(corpus)} are not in the store"
        raise CorpusError("corpus.incomplete", what, _PUT_AGAIN)
    return dict(manifest)


def corpus_facts_json(corpus: Digest, store: BlobStore, target: Digest = NO_DIGEST) -> str:
    """Canonical JSON of the facts of a corpus, and of a target's; raises as `read_manifest` does."""
    manifest = read_manifest(corpus, store)
    target_shards: tuple[Digest, ...] = ()
    if target != NO_DIGEST:
        target_shards = tuple(Digest(shard["digest"]) for shard in read_manifest(target, store)["shards"])
    try:
        return replace(CorpusFacts.from_manifest(manifest), target_shards=target_shards).to_json()
    except (KeyError, TypeError, AttributeError) as error:
        raise _bad_manifest(corpus, f"{type(error).__name__} {error}") from None


def _bad_manifest(corpus: Digest, why: str) -> CorpusError:
    return CorpusError("corpus.bad-manifest", f"blob {short(corpus)} is no corpus manifest: {why}", _PUT_AGAIN)
