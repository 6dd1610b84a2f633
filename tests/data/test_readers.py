"""One reader of rows for files, tables and data sets: the same rows, and messages that say where."""

import json

import pytest

from shallower import UserError
from shallower.data import readers
from shallower.data.readers import read_text, rows, stream_rows, text_of
from shallower.evaluation.items import check_items

TEXTS = ["The dog saw the fox.", "", "Ein Satz mit Umlaut: für.\nZwei Zeilen."]


@pytest.fixture
def folder(tmp_path):
    """The same texts as .jsonl, .parquet and a data set, which is a folder."""
    (tmp_path / "set").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    for path in (tmp_path / "a.jsonl", tmp_path / "set" / "train.jsonl"):
        path.write_text(lines, encoding="utf-8")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": TEXTS, "more": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    return tmp_path


def test_files_tables_and_data_sets_give_the_same_rows(folder) -> None:
    pytest.importorskip("datasets")
    expected = [{"text": text} for text in TEXTS]
    sources = [(folder / "a.jsonl", "data"), (folder / "a.parquet", "texts"), (folder / "set", "dataset")]
    for source, what in sources:
        found = list(rows(source, what))
        assert [row for _, row in found] == expected
        assert found[2][0].startswith(f"{what}={source}: ") and found[2][0].endswith(" 3")
    assert list(stream_rows(str(folder / "set"))) == list(rows(folder / "set", "dataset"))
    assert list(stream_rows(str(folder / "set"), skipped=2)) == list(rows(folder / "set", "dataset"))[2:]
    assert read_text(folder / "a.jsonl") == read_text(folder / "a.parquet") == "\n\n".join(TEXTS)
    assert read_text(folder / "set", "dataset") == "\n\n".join(filter(None, TEXTS))


def test_a_text_file_is_one_row(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert list(rows(tmp_path / "a.txt")) == [(f"text={tmp_path / 'a.txt'}", {"text": "one\ntwo\nthree\n"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n[1]\n', "line 3 is a list; each line needs an object with a text"),
        (b'{"text": "a"}\r\n{"text\n', "line 2 is not JSON"),
        (b'{"text": "a"}\n{"body": "b"}\n', r"line 2 has no field 'text' \(it has body\)"),
        (b'{"text": 5}\n', "line 1 has a field 'text' that is a int"),
        (b'{"text": "\\ud800"}\n', r"line 1 is not JSON \(half a character in it\)"),
        (b'{"text": "caf\xe9"}\n', r"is not UTF-8 \(byte 13\)"),
    ],
)
def test_bad_lines_are_told_of_alike(tmp_path, content, message) -> None:
    path = tmp_path / "piqa.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^data={path}.*{message}"):
        [text_of(where, row) for where, row in rows(path, "data")]
    with pytest.raises(UserError, match=rf"^data={path}: line \d|^data={path} is not UTF-8"):
        check_items(tmp_path, "piqa")


def test_limits_and_other_columns(folder, monkeypatch) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"no such file; give a \.txt, \.jsonl or \.parquet file$"):
        next(rows(folder / "b.txt"))
    (folder / "set" / "train.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(UserError, match=r"^dataset=.* has no column 'text' \(it has body\)$"):
        next(rows(folder / "set", "dataset"))
    (folder / "set" / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(UserError, match=r"^dataset=.*: row 1 has no field 'text' \(it has instruction, output\)"):
        read_text(folder / "set", "dataset")
    monkeypatch.setattr(readers, "LARGEST_TEXT", 1)
    with pytest.raises(UserError, match="is larger than 0 GiB: cut it, or read it as a dataset"):
        next(rows(folder / "a.parquet"))
