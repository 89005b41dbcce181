"""Vectors: what is refused, how windows are cut, and how articles are split."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest
from amn_helpers import ENCODER, articles, vector_set, write_npz

from amn.data import dataset
from amn.data.arrays import FileRows
from amn.data.dataset import near_duplicates, rows_of, split_by_article, training_vectors, write_sample
from amn.data.join import join
from amn.data.readers import read_vectors
from amn.data.vectors import validate
from amn.errors import CheckpointError, DataError

KINDS = np.array(["alpha", "songs", "tales", "anarchism"] * 15)


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, 768)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_vector_file_is_read_with_unit_rows(tmp_path):
    data = read_vectors(write_npz(tmp_path))
    assert data.vectors.shape == (480, 768)
    np.testing.assert_allclose(np.linalg.norm(data.rows(slice(0, 9)), axis=1), 1.0, atol=1e-6)


def test_plain_members_stay_in_the_file_and_compressed_ones_read_alike(tmp_path):
    many = articles(count=80, length=12)
    np.savez(tmp_path / "plain.npz", **many)
    np.savez_compressed(tmp_path / "packed.npz", **many)
    plain, packed = read_vectors(tmp_path / "plain.npz"), read_vectors(tmp_path / "packed.npz")
    assert isinstance(plain.vectors, FileRows)
    np.testing.assert_array_equal(plain.vectors[:], packed.vectors)
    assert plain.sha256() == packed.sha256()


def test_the_vectors_of_a_folder_stay_in_their_file(tmp_path):
    folder_of(articles(), tmp_path)
    data = read_vectors(tmp_path)
    assert isinstance(data.vectors, FileRows)
    np.testing.assert_array_equal(data.vectors[:], articles()["vectors"])


def folder_of(arrays, folder):
    (folder / "encoder.txt").write_text(str(arrays.pop("encoder")) + "\n")
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def in_a_table(encoder, path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    many = articles()
    columns = {
        "vector": many["vectors"].astype("f4").tolist(),
        "article": many["article"],
        "domain": many["article_domain"][many["article"]].tolist(),
    }
    metadata = {"encoder": encoder} if encoder else {}
    parquet.write_table(pa.table(columns, metadata=metadata), path)


def test_each_kind_of_file_names_the_encoder_of_its_vectors(tmp_path):
    folder_of(articles(), tmp_path)
    in_a_table(ENCODER, tmp_path / "x.parquet")
    for path in (tmp_path, write_npz(tmp_path), tmp_path / "x.parquet"):
        assert read_vectors(path).encoder_id == ENCODER
        assert read_vectors(path, ENCODER).encoder_id == ENCODER
        with pytest.raises(DataError, match="of encoder 'a-test/mean/l2', not 'another'"):
            read_vectors(path, "another")


def test_a_file_that_names_no_encoder_takes_the_one_that_is_given_and_no_other(tmp_path):
    in_a_table("", tmp_path / "x.parquet")
    for path in (write_npz(tmp_path, encoder=np.array("")), tmp_path / "x.parquet"):
        assert read_vectors(path, ENCODER).encoder_id == ENCODER
        with pytest.raises(DataError, match="add --encoder, such as all-mpnet"):
            read_vectors(path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_parquet_and_arrow_are_read_like_npz(tmp_path, suffix):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    many = articles()
    table = pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(many["vectors"].astype("f4").ravel()), 768),
            "article": many["article"],
            "domain": many["article_domain"][many["article"]].tolist(),
        },
        metadata={"encoder": ENCODER},
    )
    path = tmp_path / f"x.{suffix}"
    (parquet.write_table if suffix == "parquet" else feather.write_feather)(table, path)
    data = read_vectors(path)
    np.testing.assert_array_equal(data.vectors, many["vectors"].astype("f4"))
    assert data.article_domain.tolist() == many["article_domain"].tolist()


def documents_in(path, lengths, encoder=ENCODER, first=0, **changes):
    """Documents as `amn data encode` writes them."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ids = [f"d{first + i}" for i, length in enumerate(lengths) for _ in range(length)]
    columns = {"doc_id": ids, "domain": ["text"] * len(ids)}
    columns["position"] = [i for length in lengths for i in range(length)]
    rows = pa.array(unit_rows(len(ids), seed=first).ravel())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(rows, 768)
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns | changes, metadata={"encoder": encoder}), path)


def test_a_folder_of_documents_is_read_without_those_that_are_too_short(tmp_path):
    documents_in(tmp_path / "v" / "part-000000.parquet", [7, 5])
    documents_in(tmp_path / "v" / "part-000001.parquet", [6], first=2)
    documents_in(tmp_path / "v" / ".part-000002.parquet", [6], first=3)  # as a run that is under way
    data = read_vectors(tmp_path / "v")
    assert (data.article_name.tolist(), np.bincount(data.article).tolist()) == (["d0", "d2"], [7, 6])
    np.testing.assert_array_equal(data.vectors, np.concatenate([unit_rows(12)[:7], unit_rows(6, seed=2)]))


def test_documents_out_of_order_and_parts_of_two_encoders_are_refused(tmp_path):
    documents_in(tmp_path / "v" / "a.parquet", [6], position=[0, 1, 3, 2, 4, 5])
    with pytest.raises(DataError, match="row 3 has position 2 after 3 in its document"):
        read_vectors(tmp_path / "v")
    documents_in(tmp_path / "w" / "a.parquet", [6])
    documents_in(tmp_path / "w" / "b.parquet", [6], encoder="another", first=1)
    with pytest.raises(
        CheckpointError, match=r"a.parquet is of encoder 'a-test/mean/l2', and .*b.parquet of 'another'"
    ):
        read_vectors(tmp_path / "w")


def table(tmp_path, vectors, kind="list", **changes):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather

    types = {"list": pa.list_(pa.float32()), "large": pa.large_list(pa.float64())}
    types |= {"numbers": pa.float32(), "text": pa.list_(pa.string()), "whole": pa.list_(pa.int32())}
    many = articles()
    columns = {
        "article": many["article"].tolist(),
        "domain": many["article_domain"][many["article"]].tolist(),
    }
    columns |= {"vector": pa.array(vectors, types[kind])} | changes
    feather.write_feather(
        pa.table(columns, metadata={"encoder": ENCODER}), tmp_path / "x.arrow", compression="uncompressed"
    )
    return tmp_path / "x.arrow"


def uneven(rows):
    rows[5], rows[8] = [], rows[8] + rows[9]


def too_short(rows):
    rows[7] = rows[7][:-1]


def absent(rows):
    rows[6] = None


def with_a_gap(rows):
    rows[9] = [*rows[9][:-1], None]


@pytest.mark.parametrize("kind", ["list", "large"])
@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (uneven, "row 5 holds 0 numbers, a vector has 768"),
        (too_short, "row 7 holds 767 numbers"),
        (absent, "row 6 has no vector"),
        (with_a_gap, "row 9 holds a null"),
    ],
)
def test_each_row_of_a_table_is_looked_at(tmp_path, kind, spoiled, words):
    """The sum of the lengths may fit: the vectors in between would be other articles'."""
    rows = articles()["vectors"].astype("f4").tolist()
    np.testing.assert_array_equal(read_vectors(table(tmp_path, rows, kind)).vectors, np.asarray(rows, "f4"))
    spoiled(rows)
    with pytest.raises(DataError, match=words):
        read_vectors(table(tmp_path, rows, kind))


@pytest.mark.parametrize(
    ("kind", "value"), [("numbers", 0.5), ("text", ["0.5"] * 768), ("whole", [1] + [0] * 767)]
)
def test_a_column_of_something_else_is_refused(tmp_path, kind, value):
    with pytest.raises(DataError, match="column vector holds"):
        read_vectors(table(tmp_path, [value] * 480, kind))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"article": [None, *[0] * 479]}, "row 0 has no article"),
        ({"domain": [*["alpha"] * 17, None, *["alpha"] * 462]}, "row 17 has no domain"),
        ({"domain": [*["alpha"] * 17, "beta", *["alpha"] * 462]}, "row 17 has domain 'beta'"),
    ],
)
def test_what_a_table_says_of_its_articles_is_looked_at(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        read_vectors(table(tmp_path, articles()["vectors"].astype("f4").tolist(), **changes))


def test_a_part_of_a_table_is_that_part(tmp_path):
    pa = pytest.importorskip("pyarrow")
    rows = articles()["vectors"].astype("f4")
    longer = pa.FixedSizeListArray.from_arrays(pa.array(np.vstack([rows[:3], rows]).ravel()), 768)
    found = read_vectors(table(tmp_path, [], vector=longer.slice(3)))
    np.testing.assert_array_equal(found.vectors, rows)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="pip install pyarrow"):
        read_vectors(tmp_path / "x.parquet")


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather

    vectors = pa.array([[0.0] * 768] * 2, pa.list_(pa.float32()))
    columns = [vectors, vectors, pa.array([0, 0]), pa.array(["d", "d"])]
    table = pa.Table.from_arrays(columns, names=["vector", "vector", "article", "domain"])
    feather.write_feather(table, tmp_path / "x.arrow")
    with pytest.raises(DataError, match="several columns vector"):
        read_vectors(tmp_path / "x.arrow")


def spoil(row: int, value: float) -> np.ndarray:
    vectors = articles()["vectors"].copy()
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vectors": spoil(7, np.nan)}, "row 7 holds NaN"),
        ({"vectors": spoil(7, 0.0)}, "row 7 is all zeros"),
        ({"vectors": spoil(7, 0.1)}, "row 7 has norm"),
        ({"vectors": np.zeros((480, 767), np.float16)}, r"expected \(N, 768\)"),
        ({"vectors": np.zeros((0, 768), np.float16), "article": np.zeros(0, int)}, "no vectors"),
        ({"article": np.arange(480)}, "article 0 has 1 vectors"),
        ({"article": np.tile(np.arange(40), 12)}, "several pieces"),
        ({"article": np.zeros(3, int)}, "one article id for each"),
        ({"article_domain": np.array(["alpha"])}, "do not fit"),
        ({"article_domain": np.full(480, "alpha")}, "one entry for each article"),
        ({"article_name": np.full(3, "alpha")}, "article_name has shape"),
        ({"article": np.repeat(np.arange(40.0), 12)}, "ids of type float64"),
        ({"vectors": articles()["vectors"].astype(str)}, "vectors of type <U"),
        ({"vectors": articles()["vectors"].astype("c8")}, "vectors of type complex64"),
        (
            {"vectors": np.ma.array(articles()["vectors"], mask=articles()["vectors"] > 0.1)},
            "row 1 are masked",
        ),
    ],
)
def test_bad_vectors_are_refused_with_the_row_or_article(changes, words):
    with pytest.raises(DataError, match=words):
        validate(vector_set(**changes))


def test_pickled_arrays_are_never_loaded(tmp_path):
    path = write_npz(tmp_path, article_name=np.array([{"a": 1}] * 40, dtype=object))
    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        read_vectors(path)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = write_npz(tmp_path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match="not a zip file"):
        read_vectors(path)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match="unknown suffix"):
        read_vectors(tmp_path / "x.csv")
    with pytest.raises(DataError, match="does not exist"):
        read_vectors(tmp_path / "nothing.npz")


def test_a_file_without_article_ids_names_what_is_missing(tmp_path):
    np.savez(tmp_path / "x.npz", vectors=articles()["vectors"])
    with pytest.raises(DataError, match="lacks article, article_domain"):
        read_vectors(tmp_path / "x.npz")


def test_windows_never_cross_an_article():
    data = vector_set()
    starts = data.window_starts()
    assert len(starts) == 40 * (12 - 5)
    rows = starts[:, None] + np.arange(6)
    assert (data.article[rows] == data.article[starts][:, None]).all()


def test_no_article_stands_on_two_sides_and_the_unseen_domain_is_never_trained_on():
    data = vector_set()
    split = split_by_article(data, selection_domain="beta")
    seen: set[int] = set()
    for name, starts in split.sides().items():
        own = set(data.article[starts].tolist())
        assert not own & seen, name
        seen |= own
        domains = set(data.article_domain[sorted(own)])
        assert (domains == {"anarchism"}) == (name == "unseen")
        assert (domains == {"beta"}) == (name == "selection")


def test_judged_articles_stay_the_same_when_a_selection_domain_is_held_out():
    data = vector_set()
    plain, held = split_by_article(data), split_by_article(data, selection_domain="beta")
    assert set(held.test) <= set(plain.test)
    assert set(held.train) <= set(plain.train)


def test_sets_that_join_are_trained_on_and_leave_every_other_side_as_it_was(tmp_path):
    first, other = (
        vector_set(),
        vector_set(**articles(count=60, length=8, seed=1) | {"article_domain": KINDS}),
    )
    join(first, [other], ["tales"], tmp_path / "joined")
    joined, alone = read_vectors(tmp_path / "joined"), split_by_article(first)
    split = split_by_article(joined)
    for name in ("validation", "test", "unseen"):
        np.testing.assert_array_equal(getattr(split, name), getattr(alone, name))
    assert set(alone.train) < set(split.train)
    added = joined.article_domain[joined.article[np.setdiff1d(split.train, alone.train)]]
    assert set(added) == {"alpha", "songs"}  # a text of the unseen domain is not trained on, wherever it is
    assert set(joined.article_domain[joined.article[split.left_out["tales"]]]) == {"tales"}
    assert split.sides().keys() == {"train", "validation", "test", "unseen", "tales"}
    assert joined.sha256() == read_vectors(tmp_path / "joined").sha256()
    about = json.loads((tmp_path / "joined" / "manifest.json").read_text())
    assert [one["sha256"] for one in about["joined"]] == [first.sha256(), other.sha256()]


@pytest.mark.parametrize("kind", [np.uint64, np.int8])
def test_sets_join_whatever_integers_number_their_articles(tmp_path, kind):
    first, other = (vector_set(**articles(count=90, length=8, seed=seed)) for seed in (0, 1))
    join(replace(first, article=first.article.astype(kind)), [other], [], tmp_path / "joined")
    joined = read_vectors(tmp_path / "joined").article
    np.testing.assert_array_equal(joined, np.concatenate([first.article, other.article + 90]))


def test_a_set_that_is_given_twice_is_refused(tmp_path):
    first, other = (vector_set(**articles(count=40, length=8, seed=seed)) for seed in (0, 1))
    for others in ([first], [other, other]):
        with pytest.raises(DataError, match="given twice"):
            join(first, others, [], tmp_path / "joined")


def test_what_cannot_join_is_refused(tmp_path):
    first, other = vector_set(), vector_set(encoder="another")
    with pytest.raises(CheckpointError, match=r"1 synthetic is of encoder .* 2 synthetic of 'another'"):
        join(first, [other], [], tmp_path / "joined")
    with pytest.raises(DataError, match="no article that joins is of domain 'tales'"):
        join(first, [first], ["tales"], tmp_path / "joined")
    with pytest.raises(DataError, match="domain 'alpha' is left out, but not all of its articles"):
        join(first, [first], ["alpha"], tmp_path / "joined")
    named = vector_set(article_domain=np.array(["test"] * 40))
    with pytest.raises(DataError, match="a side of its name, and 'test' is one; rename it"):
        join(first, [named], ["test"], tmp_path / "joined")
    with pytest.raises(DataError, match="a side of its name, and 'test' is one; rename it"):
        validate(vector_set(article_domain=named.article_domain, article_side=np.array(["left_out"] * 40)))
    with pytest.raises(DataError, match="article_side holds 'test'"):
        validate(vector_set(article_side=np.array(["test"] * 40)))
    with pytest.raises(DataError, match="article_side has 2 entries"):
        validate(vector_set(article_side=np.array(["train"] * 2)))
    assert not (tmp_path / "joined").exists()


def test_an_unknown_domain_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match="alpha, anarchism, beta, gamma"):
        split_by_article(vector_set(), unseen_domain="cooking")


def test_too_few_articles_for_a_split_are_refused():
    few = articles(count=8)
    with pytest.raises(DataError, match="side is empty"):
        split_by_article(vector_set(**few))


def test_training_windows_that_repeat_a_judged_vector_are_dropped_and_counted():
    clean = vector_set()
    split = split_by_article(clean)
    assert split.dropped == 0
    vectors = clean.vectors.copy()
    trained, judged = int(split.train[3]), int(split.test[0])
    vectors[trained + 2] = vectors[judged + 1]
    again = split_by_article(vector_set(vectors=vectors))
    assert again.dropped > 0
    assert len(again.test) == len(split.test)
    assert trained + 2 not in rows_of(again.train)


def test_near_duplicates_are_found_as_by_comparing_all_pairs():
    others = unit_rows(400, seed=1)
    rows = unit_rows(300, seed=2)
    rows[::7] = others[:43] + 0.0005 * unit_rows(43, seed=3)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (rows @ others.T).max(axis=1) > 0.999
    assert expected.sum() == 43
    np.testing.assert_array_equal(near_duplicates(rows, others), expected)
    assert not near_duplicates(rows, others[:0]).any()


def test_a_split_compares_some_rows_at_a_time_and_is_the_same(monkeypatch):
    vectors = vector_set().vectors.copy()
    wanted = split_by_article(vector_set())
    vectors[int(wanted.train[3]) + 2] = vectors[int(wanted.test[0]) + 1]
    data, sizes = vector_set(vectors=vectors), []
    wanted = split_by_article(data)

    def noted(rows, others):
        sizes.append(len(rows))
        return near_duplicates(rows, others)

    monkeypatch.setattr(dataset, "near_duplicates", noted)
    monkeypatch.setattr(dataset, "_COMPARED_ROWS", 50, raising=False)
    found = split_by_article(data)
    assert max(sizes) == 50
    assert found.dropped == wanted.dropped > 0
    np.testing.assert_array_equal(found.train, wanted.train)


def test_training_vectors_are_those_of_the_training_side():
    data = vector_set()
    vectors, ids = training_vectors(data)
    split = split_by_article(data)
    np.testing.assert_array_equal(vectors, data.rows(rows_of(split.train)))
    assert set(ids.tolist()) == set(data.article[split.train].tolist())


def test_the_sample_holds_contiguous_held_out_rows_of_both_slices(tmp_path):
    data = vector_set()
    windows = write_sample(data, tmp_path / "sample.npz", vectors=60, seed=0)
    sample = np.load(tmp_path / "sample.npz", allow_pickle=False)
    assert windows > 0
    assert set(sample["article_slice"]) == {"id", "ood"}
    assert len(sample["vectors"]) == len(sample["article"]) <= 60
    split = split_by_article(data)
    judged = {"id": split.test, "ood": split.unseen}
    for number, kind in enumerate(sample["article_slice"]):
        rows = sample["vectors"][sample["article"] == number]
        place = np.flatnonzero((data.vectors == rows[0]).all(axis=1))[0]
        np.testing.assert_array_equal(data.vectors[place : place + len(rows)], rows)
        assert place in judged[kind]


def test_a_sample_too_small_for_windows_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no windows"):
        write_sample(vector_set(), tmp_path / "x.npz", vectors=5, seed=0)
