from potluck.ids import NO_DIGEST, Digest, LineageId
from potluck.lm.checkpoint import CheckpointManifest
from potluck.recipe import Profile

MANIFEST = CheckpointManifest(
    lineage=LineageId("1" * 64),
    step=48,
    parent=NO_DIGEST,
    profile=Profile(),
    segments=(Digest("2" * 64), Digest("3" * 64)),
    data_position=256,
    rng={"init_seed": 7},
    weights=Digest("4" * 64),
    optimizer=Digest("5" * 64),
)
TEXT = (
    '{"data_position":256,"lineage":"' + "1" * 64 + '","optimizer":"' + "5" * 64 + '","parent":"",'
    '"profile":{"compile":false,"device":"cpu","dtype":"float32","threads":1},"rng":{"init_seed":7},'
    '"segments":["' + "2" * 64 + '","' + "3" * 64 + '"],"step":48,"weights":"' + "4" * 64 + '"}'
)


def test_the_text_and_digest_of_a_manifest_never_change() -> None:
    assert MANIFEST.to_json() == TEXT
    assert MANIFEST.digest == "3f4a69ecda0e6f2e5490003651b3f37990d00238ee80bb10921dffdcafacbc8e"


def test_a_manifest_reads_back_what_it_wrote() -> None:
    assert CheckpointManifest.from_json(TEXT) == MANIFEST
