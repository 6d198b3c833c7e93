"""The index on disk: incremental, safe to kill, one writer, the same bytes again; and what a search finds in it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_retrieval_documents import write_pdf

from medical_qwen.retrieval import Encoder, Index, Reranker, search, vectors
from medical_qwen.retrieval import index as index_module
from medical_qwen.retrieval.store import Store

ROOT = Path(__file__).resolve().parents[1]


class Counting(Encoder):
    """A real embedding model that writes down what it was given."""

    def encode(self, texts):
        self.seen = [*getattr(self, "seen", []), *texts]
        return super().encode(texts)


@pytest.fixture(scope="session")
def encoder(shared):
    return Counting(shared / "models" / "bge-small-zh-v1.5")


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "高血压.md").write_text(
        "# 高血压\n低盐饮食，每天食盐不超过五克。\n## 用药\n按时服药，不要自行停药。\n", "utf-8"
    )
    (folder / "糖尿病.txt").write_text("糖尿病的典型表现是多饮、多尿、多食和体重下降。", "utf-8")
    (folder / "问答.jsonl").write_text('{"问": "感冒要吃抗生素吗？", "答": "多由病毒引起，一般不需要。"}\n', "utf-8")
    return folder


def build(tmp_path, docs, encoder=None, name="index", **settings):
    return Index.build(tmp_path / name, [docs], encoder, progress=False, **settings)


def content(directory):
    """Every file of an index but its lock, byte for byte."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def top(index, query, k=1):
    return [hit.passage.text.splitlines()[-1] for hit in index.search(query, k)]


def test_words_find_and_the_place_comes_along(tmp_path, docs, caplog):
    index = build(tmp_path, docs)
    assert "BM25" in caplog.text
    assert index.files == ["糖尿病.txt", "问答.jsonl", "高血压.md"]
    hit = index.search("可以自己停药吗", 1)[0]
    assert (hit.passage.file, hit.passage.heading) == ("高血压.md", "高血压 > 用药")
    assert (docs / "高血压.md").read_text("utf-8")[hit.passage.start : hit.passage.end] == hit.passage.text
    assert hit.words > 0 and hit.cosine is None
    assert index.search("抗生素", 1)[0].passage.heading == "row 1"
    assert index.search("qwerty") == index.search("  ") == []


def test_bm25_equals_the_formula(tmp_path):
    """Lucene's BM25 (Kamphuis et al., ECIR 2020, table 1) by hand: three passages, k1 1.5, b 0.75."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("aspirin aspirin fever", "fever", "cough")), "utf-8"
    )
    hits = {hit.passage.text: hit.words for hit in build(tmp_path, folder).search("Aspirin FEVER", 3)}
    length = 5 / 3
    idf = {"aspirin": np.log(1 + 2.5 / 1.5), "fever": np.log(1 + 1.5 / 2.5)}
    norm = {3: 1.5 * (0.25 + 0.75 * 3 / length), 1: 1.5 * (0.25 + 0.75 / length)}
    assert hits["aspirin aspirin fever"] == pytest.approx(
        idf["aspirin"] * 2 / (2 + norm[3]) + idf["fever"] / (1 + norm[3])
    )
    assert hits["fever"] == pytest.approx(idf["fever"] / (1 + norm[1]))
    assert set(hits) == {"aspirin aspirin fever", "fever"}


def test_meaning_finds_what_shares_no_word(tmp_path, docs, encoder):
    index = build(tmp_path, docs, encoder)
    hit = index.search("钠摄入", 1)[0]
    assert hit.words == 0 and "食盐" in hit.passage.text
    vectors = encoder.encode([hit.passage.indexed])[0], encoder.encode_query("钠摄入")
    assert hit.cosine == pytest.approx(float(np.dot(*vectors)), abs=1e-5)
    assert len(index.search("盐", 99)) == len(index) == 4


def test_fusion_is_the_sum_of_reciprocal_ranks():
    assert search.fuse([np.array([7, 3]), np.array([3, 5])]) == [(3, 1 / 62 + 1 / 61), (7, 1 / 61), (5, 1 / 62)]


def test_capitals_are_known_to_the_embedding_model(encoder):
    upper, lower = encoder.encode(["CT 和 HbA1c 检查", "ct 和 hba1c 检查"])
    assert np.array_equal(upper, lower)
    assert encoder.model.tokenizer.unk_token_id in encoder.model.tokenizer("CT")["input_ids"]  # why it is needed


def test_only_what_is_new_is_read_and_the_rest_stays(tmp_path, docs, encoder):
    index = build(tmp_path, docs, encoder)
    encoder.seen = []
    (docs / "骨折.txt").write_text("骨折后应当固定。", "utf-8")
    (docs / "糖尿病.txt").write_text("糖尿病患者要定期查血糖。", "utf-8")
    (docs / "问答.jsonl").rename(docs / "改名.jsonl")
    (docs / "副本.md").write_bytes((docs / "高血压.md").read_bytes())
    update = index.update([docs], progress=False)
    assert sorted(encoder.seen) == sorted(["骨折后应当固定。", "糖尿病患者要定期查血糖。"])
    assert (update.added, update.changed, update.deleted) == (
        ["副本.md", "改名.jsonl", "骨折.txt"],
        ["糖尿病.txt"],
        ["问答.jsonl"],
    )
    assert (update.unchanged, update.new_passages, update.passages) == (1, 2, 5)
    assert top(index, "体重下降") != ["糖尿病的典型表现是多饮、多尿、多食和体重下降。"]
    assert index.search("抗生素", 1)[0].passage.file == "改名.jsonl"
    assert Index.open(tmp_path / "index", encoder).search("骨折", 1) == index.search("骨折", 1)


def test_files_elsewhere_stay_and_a_file_that_is_gone_leaves(tmp_path, docs):
    index = build(tmp_path, docs)
    (tmp_path / "单独.txt").write_text("胸痛请拨打急救电话。", "utf-8")
    assert index.update([tmp_path / "单独.txt"], progress=False).deleted == []
    assert len(index.files) == 4
    (docs / "糖尿病.txt").unlink()
    assert index.update([docs / "糖尿病.txt"], progress=False).deleted == ["糖尿病.txt"]
    assert "糖尿病.txt" not in index.files and top(index, "体重下降") == []
    with pytest.raises(FileNotFoundError, match="nowhere"):
        index.update([tmp_path / "nowhere"])


def test_an_index_among_its_documents_and_beside_others(tmp_path, docs):
    """The index's own files are no documents, and a folder above it is not everything that is above."""
    index = Index.build(docs / "index", [docs, tmp_path], progress=False)
    assert sorted(set(index.files)) == ["docs/糖尿病.txt", "docs/问答.jsonl", "docs/高血压.md"]
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("胸痛请拨打急救电话。", "utf-8")
    index.update([outside], progress=False)
    (docs / "糖尿病.txt").unlink()
    assert index.update([docs], progress=False).deleted == ["docs/糖尿病.txt"]
    assert outside.name in index.files


def test_nothing_new_changes_nothing(tmp_path, docs):
    index = build(tmp_path, docs)
    before = content(tmp_path / "index")
    (docs / "高血压.md").touch()
    update = index.update([docs], progress=False)
    assert (update.unchanged, update.new_passages, content(tmp_path / "index")) == (3, 0, before)


def test_an_interrupted_update_can_still_be_searched(tmp_path, docs, monkeypatch):
    index = build(tmp_path, docs)
    (docs / "骨折.txt").write_text("骨折后应当固定。", "utf-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index_module, "prepare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        index.update([docs], progress=False)
    assert top(index, "停药") == ["按时服药，不要自行停药。"]
    index.update([docs], progress=False)
    assert top(index, "骨折") == ["骨折后应当固定。"]


def test_a_reader_that_has_not_searched_yet_finds_what_it_opened(tmp_path, docs):
    index = build(tmp_path, docs)
    reader = Index.open(tmp_path / "index")
    (docs / "骨折.txt").write_text("骨折后应当固定。", "utf-8")
    index.update([docs], progress=False)
    assert top(reader, "停药") == ["按时服药，不要自行停药。"] and top(reader, "骨折") == []


def test_questions_during_an_update_are_answered_from_before(tmp_path, docs, monkeypatch):
    build(tmp_path, docs)
    index, seen = Index.open(tmp_path / "index"), []
    (docs / "骨折.txt").write_text("骨折后应当固定。", "utf-8")
    append = index._append
    monkeypatch.setattr(index, "_append", lambda *args: (append(*args), seen.append(top(index, "停药"))))
    index.update([docs], progress=False)
    assert seen == [["按时服药，不要自行停药。"]] and top(index, "骨折") == ["骨折后应当固定。"]


def test_an_index_moves_with_its_documents(tmp_path, docs):
    build(tmp_path, docs)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    docs.rename(moved / "docs")
    (tmp_path / "index").rename(moved / "index")
    assert Index.build(moved / "index", [moved / "docs"], progress=False).last_update.unchanged == 3
    assert str(tmp_path) not in (moved / "index" / "index.json").read_text("utf-8")


@pytest.mark.slow
def test_one_file_more_on_ten_thousand(tmp_path):
    """Words alone, so that it takes seconds; that embeddings are not made again is counted above."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number}.txt").write_text(f"病例{number}：血压{number % 90 + 90}，建议随访。", "utf-8")
    index = build(tmp_path, folder)
    (folder / "new.txt").write_text("病例一万：心率正常。", "utf-8")
    update = index.update([folder], progress=False)
    assert (update.added, update.unchanged, update.new_passages, update.passages) == (["new.txt"], 10_000, 1, 10_001)
    assert top(index, "心率") == ["病例一万：心率正常。"]


KILLED = """
import sys
from medical_qwen.retrieval import Encoder, Index, index
index.BATCH, index.COMMIT_SECONDS = 16, 0.0
Index.build(sys.argv[1], [sys.argv[2]], Encoder(sys.argv[3]), progress=False)
"""


def test_killed_and_run_again_is_the_same_index_byte_for_byte(tmp_path, shared, encoder, monkeypatch):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in "abc":
        rows = ({"text": f"{name}{number}：患者血压{number}，{'建议随访。' * (number % 5)}"} for number in range(100))
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    (folder / "empty.txt").touch()
    monkeypatch.setattr(index_module, "BATCH", 16)
    build(tmp_path, folder, encoder, name="whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(folder), encoder.name]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    store = Store(tmp_path / "killed")
    while process.poll() is None and ((state := store.read("progress.json")) is None or state.rows < 100):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 100 <= store.read("progress.json").rows < 300
    with pytest.raises(FileNotFoundError, match="was not finished: run the same command again"):
        Index.open(tmp_path / "killed")
    for log in (tmp_path / "killed" / "data-1").iterdir():  # as if it had been killed within a write
        with log.open("ab") as stream:
            stream.write(b"torn")
    encoder.seen = []
    index = build(tmp_path, folder, encoder, name="killed")
    assert 0 < len(encoder.seen) <= 200
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert index.last_update.skipped == [("empty.txt", "an empty file (0 bytes)")]


def test_a_killed_update_leaves_readers_what_they_had(tmp_path, docs, monkeypatch):
    index = build(tmp_path, docs)
    (docs / "骨折.txt").write_text("骨折后应当固定。", "utf-8")
    (docs / "高血压.md").write_text("新的内容。", "utf-8")
    monkeypatch.setattr(index_module, "prepare", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if (child := os.fork()) == 0:
        try:
            index.update([docs], progress=False)
        finally:
            os._exit(1)  # it was not killed: no second test process may go on from here
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    monkeypatch.undo()
    reader = Index.open(tmp_path / "index")
    assert len(reader) == 4 and top(reader, "停药") == ["按时服药，不要自行停药。"] and top(reader, "骨折") == []
    update = reader.update([docs], progress=False)
    assert (update.added, update.changed, update.new_passages) == (["骨折.txt"], ["高血压.md"], 0)
    assert top(reader, "骨折") == ["骨折后应当固定。"] and top(reader, "停药") == []


def test_dead_passages_are_cleared_away(tmp_path, docs, encoder):
    index = build(tmp_path, docs, encoder)
    before = index.search("停药", 9)
    for version in range(9):
        (docs / "糖尿病.txt").write_text("".join(f"第{version}版的第{line}行。\n" for line in range(200)), "utf-8")
        index.update([docs], progress=False)
    assert index.state.rows < 3 * len(index) < 60
    assert [hit.passage for hit in index.search("停药", 9)][:2] == [hit.passage for hit in before][:2]
    assert top(index, "第8版的第77行")[0].startswith("第8版") and not top(index, "第3版的")[0].startswith("第3版")
    assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) <= 4


def test_one_process_writes(tmp_path, docs):
    index = build(tmp_path, docs)
    with index.store.writing(), pytest.raises(ValueError, match="another process is writing this index"):
        index.update([docs])
    assert top(index, "停药") == ["按时服药，不要自行停药。"]


def test_another_embedding_model_is_refused(tmp_path, docs, encoder):
    import torch

    build(tmp_path, docs, encoder)
    words = Index.open(tmp_path / "index")
    assert top(words, "停药") == ["按时服药，不要自行停药。"]
    with pytest.raises(ValueError, match=r"built with --embedding_model bge-small-zh-v1\.5: give it"):
        words.update([docs])
    weight = encoder.model[0].auto_model.embeddings.word_embeddings.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
        with pytest.raises(ValueError, match=r"the index was built with bge-small-zh-v1\.5"):
            Index.open(tmp_path / "index", encoder)
    finally:
        weight.data.copy_(kept)
    Index.open(tmp_path / "index", encoder)
    build(tmp_path, docs, name="words")
    with pytest.raises(ValueError, match="was built without one"):
        Index.open(tmp_path / "words", encoder)


def test_wrong_settings_fail_before_anything_is_written(tmp_path, docs, encoder):
    for settings, message in (
        ({"chunk_size": 4}, "--chunk_size 4 --chunk_overlap 32: expected at least 8"),
        ({"chunk_size": 64, "overlap": 64}, "--chunk_overlap 64: expected"),
        ({"chunk_size": 600, "encoder": encoder}, "reads at most 510 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            build(tmp_path, docs, **settings)
    assert not (tmp_path / "index").exists()
    build(tmp_path, docs)
    with pytest.raises(ValueError, match=r"--chunk_size 128: .* was built with 256"):
        build(tmp_path, docs, chunk_size=128)
    with pytest.raises(FileNotFoundError, match="is no index"):
        Index.open(docs)


def test_bad_files_are_said_and_the_rest_is_indexed(tmp_path, docs):
    write_pdf(docs / "密.pdf", [["密文。"]], password="secret")
    write_pdf(docs / "长.pdf", [[f"第{page}页说的是血压。"] for page in range(1, 501)])
    (docs / "空.pdf").touch()
    (docs / "空白.txt").write_text("\n", "utf-8")
    write_pdf(docs / "假.docx", [["其实是一份文件。"]])
    index = build(tmp_path, docs)
    assert index.last_update.skipped == [
        ("密.pdf", "an encrypted PDF: save a copy without a password"),
        ("空.pdf", "an empty file (0 bytes)"),
        ("空白.txt", "there is no text in it"),
    ]
    assert "skipped 空.pdf: an empty file" in str(index.last_update)
    assert index.search("第343页", 1)[0].passage.page == 343
    assert top(index, "其实") == ["其实是一份文件。"]
    assert index.update([docs], progress=False).skipped == index.last_update.skipped != []


def test_nothing_in_an_index_is_a_pickle(tmp_path, docs, encoder):
    build(tmp_path, docs, encoder)
    for name, data in content(tmp_path / "index").items():
        assert not data.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")), name
        assert b"object" not in data[:128] or not name.endswith(".npy"), name
        assert name.endswith((".json", ".jsonl", ".bin", ".txt", ".npy")), name


def test_cells_find_what_comparing_all_finds(tmp_path, monkeypatch):
    """Clustered vectors, as texts have; the file of cells is written in two updates."""
    monkeypatch.setattr(vectors, "EXACT", 1000)
    random = np.random.default_rng(0)
    centres = random.normal(size=(200, 64))
    data = (centres[random.integers(200, size=8000)] + 0.7 * random.normal(size=(8000, 64))).astype(np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir(), second.mkdir()
    vectors.build_cells(data[:6000], first, None)
    vectors.build_cells(data, second, first)
    alive = random.random(8000) < 0.9
    cells, exact = vectors.Nearest(data, alive, second), vectors.Nearest(data, alive, tmp_path)
    assert cells.cells is not None and exact.cells is None
    shares = []
    for query in data[random.integers(8000, size=50)]:
        found, true = cells.rows(query, 10), exact.rows(query, 10)
        assert alive[found].all()
        assert np.array_equal(true, np.argsort(-np.where(alive, data @ query, -2), kind="stable")[:10])
        shares.append(len(set(found) & set(true)) / 10)
    assert np.mean(shares) > 0.95


def test_a_cross_encoder_sorts_what_was_found(tmp_path, docs, shared):
    """A small one with random weights: the order is by its own scores, read from the model itself."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "bge-small-zh-v1.5")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **shape)).eval()
    model.save_pretrained(tmp_path / "cross")
    tokenizer.save_pretrained(tmp_path / "cross")
    build(tmp_path, docs)
    question = "高血压感冒糖尿病停药"
    hits = Index.open(tmp_path / "index", reranker=Reranker(tmp_path / "cross")).search(question, 3)
    with torch.no_grad():
        pairs = tokenizer([question] * 3, [hit.passage.indexed for hit in hits], padding=True, return_tensors="pt")
        scores = torch.sigmoid(model(**pairs).logits[:, 0])
    assert [hit.relevance for hit in hits] == pytest.approx(scores.tolist(), abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.relevance for hit in hits), reverse=True)
    assert {hit.passage for hit in hits} <= {hit.passage for hit in Index.open(tmp_path / "index").search(question, 9)}
