"""Mixtures from names with weights and from counts, and the counters of traffic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.mixture_service import shortened
from coordinator.mixtures import MAX_DOMAINS, MIN_REQUESTS, completed, from_traffic, read_labels
from coordinator.traffic import MAX_REQUESTS, Counter
from coordinator.wire_admin import MAX_BYTES
from potluck.errors import DataError, Refused, SpecError
from potluck.ids import Digest
from potluck.net.blobs.store import BlobStore
from potluck.v1 import mixture_pb2
from sampling.labels import Labels

PARTITION, TOKENS, ARRAY = Digest("a" * 64), Digest("b" * 64), Digest("c" * 64)
SIZES = {"code": 20, "law": 30, "news": 50, "void": 0}


def labels(sizes: dict[str, int] | None = None) -> Labels:
    sizes = SIZES if sizes is None else sizes
    return Labels(
        partition=PARTITION,
        tokens=TOKENS,
        domains=tuple(sizes),
        sizes=sizes,
        excluded=0,
        sequence_length=8,
        label=ARRAY,
    )


def manifest(names: list[str]) -> bytes:
    value = {
        "kind": "labels",
        "partition": PARTITION,
        "tokens": TOKENS,
        "domains": names,
        "sizes": [1] * len(names),
        "excluded": 0,
        "sequence_length": 8,
        "labels": ARRAY,
    }
    return json.dumps(value).encode()


def test_domains_that_are_not_named_share_the_rest_by_their_natural_shares() -> None:
    weights = completed({"code": 0.6}, labels(), others_zero=False).weights
    assert weights == pytest.approx({"code": 0.6, "law": 0.15, "news": 0.25, "void": 0.0})


def test_a_domain_with_share_0_leaves_all_to_the_others() -> None:
    weights = completed({"news": 0.0}, labels(), others_zero=False).weights
    assert weights == pytest.approx({"code": 0.4, "law": 0.6, "news": 0.0, "void": 0.0})


def test_with_only_the_named_are_read_by_their_proportions() -> None:
    weights = completed({"code": 3, "law": 1}, labels(), others_zero=True).weights
    assert weights == pytest.approx({"code": 0.75, "law": 0.25, "news": 0.0, "void": 0.0})


def test_shares_that_sum_to_one_leave_nothing_to_the_others() -> None:
    weights = completed({"code": 0.7, "law": 0.3 + 1e-12}, labels(), others_zero=False).weights
    assert weights == pytest.approx({"code": 0.7, "law": 0.3, "news": 0.0, "void": 0.0})


@pytest.mark.parametrize(
    ("named", "others_zero", "said"),
    [
        ({"code": 0.7, "law": 0.4}, False, "sum to 1.1"),
        ({"code": 0.2, "law": 0.2, "news": 0.2}, False, "every domain is named"),
        ({}, False, "no domain is named"),
        ({"code": 0.0}, True, "all weights are zero"),
        ({"code": -0.1}, False, "-0.1"),
        ({"code": float("nan")}, True, "nan"),
        ({"void": 0.1}, False, "'void' has no rows"),
        ({"lwa": 0.1}, False, "'lwa' (near: law)"),
        ({f"zzz{i}": 0.1 for i in range(5)}, False, "and 2 more"),
    ],
)
def test_weights_that_make_no_mixture_are_refused_by_name(
    named: dict[str, float], others_zero: bool, said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        completed(named, labels(), others_zero=others_zero)
    assert caught.value.error_id == "spec.bad-mixture"
    assert said in caught.value.message
    assert caught.value.fix


def test_traffic_is_drawn_towards_the_natural_mixture_by_the_prior() -> None:
    counts = {"code": 60, "law": 40}
    assert from_traffic(counts, labels(), prior_requests=0).weights == pytest.approx(
        {"code": 0.6, "law": 0.4, "news": 0.0, "void": 0.0}
    )
    half = from_traffic(counts, labels(), prior_requests=100).weights
    assert half == pytest.approx({"code": 0.4, "law": 0.35, "news": 0.25, "void": 0.0})


def test_without_a_prior_the_natural_mixture_counts_for_one_request_a_domain() -> None:
    counts = {"code": 96}
    assert from_traffic(counts, labels(), prior_requests=None) == from_traffic(counts, labels(), prior_requests=4)


def test_what_is_asked_for_but_not_in_the_corpus_is_left_out() -> None:
    weights = from_traffic({"void": 50, "law": 50}, labels(), prior_requests=0).weights
    assert weights == pytest.approx({"code": 0.0, "law": 1.0, "news": 0.0, "void": 0.0})


def test_too_few_requests_make_no_mixture_and_their_number_is_told() -> None:
    with pytest.raises(Refused) as caught:
        from_traffic({"law": MIN_REQUESTS - 1}, labels(), prior_requests=None)
    assert caught.value.error_id == "refused.no-traffic"
    assert f"{MIN_REQUESTS - 1} requests" in caught.value.message


def test_labels_are_read_back_from_the_store(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.put_bytes(manifest(["a", "b"]))
    assert read_labels(digest, store).domains == ("a", "b")


def test_a_partition_of_too_many_domains_is_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.put_bytes(manifest([f"d{i}" for i in range(MAX_DOMAINS + 1)]))
    with pytest.raises(Refused) as caught:
        read_labels(digest, store)
    assert caught.value.error_id == "refused.too-many-domains"


@pytest.mark.parametrize("payload", [b"no json", b"[]", b"{}", b'{"kind":"labels"}'])
def test_a_blob_that_is_no_labels_manifest_is_named(tmp_path: Path, payload: bytes) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(DataError) as caught:
        read_labels(store.put_bytes(payload), store)
    assert caught.value.error_id == "data.bad-labels"


def test_a_long_history_of_many_domains_is_told_without_its_reasons() -> None:
    history = [mixture_pb2.MixtureVersion(version=n, mixture=PARTITION, reason="é" * 256) for n in range(1024)]
    domains = [
        mixture_pb2.DomainWeight(domain=f"{n:080d}", weight=0.1, natural=0.1, rows=10**6) for n in range(MAX_DOMAINS)
    ]
    info = shortened(mixture_pb2.MixtureInfo(current=domains, versions=history))
    assert (len(info.current), len(info.versions)) == (MAX_DOMAINS, 1024)
    assert info.ByteSize() <= MAX_BYTES
    brief = shortened(mixture_pb2.MixtureInfo(versions=history[:2]))
    assert brief.versions[1].reason == "é" * 256


def test_a_counter_keeps_the_partitions_domains_and_counts_others_as_unknown() -> None:
    counter = Counter(domains=frozenset({"code", "law"}), since_unix_ms=0)
    counter.add({"law": 2, "elsewhere": 5})
    counter.add({"law": 1, "code": 0})
    assert counter.counts == {"law": 3}
    assert counter.unknown == 5


def test_what_is_no_count_is_bounded() -> None:
    counter = Counter(domains=frozenset({"law"}), since_unix_ms=0)
    counter.add({"law": -7})
    assert counter.counts == {}
    counter.add({"law": 1 << 62})
    assert counter.counts == {"law": MAX_REQUESTS}
