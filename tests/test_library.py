"""The engine that looks up first: what it searches, what it puts before a model, what it lets through of answers."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from medical_qwen.evidence import REFUSAL, with_documents
from medical_qwen.generation import Generator, Request, Sampling, Server
from medical_qwen.pages.documents import free_name
from medical_qwen.retrieval import Index, Library
from medical_qwen.retrieval.citations import Citations, uncited
from medical_qwen.retrieval.library import smaller

FACTS = """# 血压

家庭自测血压达到135/85 mmHg或以上可诊断高血压。测量之前安静休息五分钟。

# 低血糖

意识清楚的人吃15至20克葡萄糖，十五分钟后复测血糖。巧克力吸收慢，不适合急救。

# 烫伤

烫伤后立即用流动凉水冲洗15～20分钟，不要涂牙膏。
"""
GREEDY = Sampling(max_new_tokens=8)


def ask(*turns: str, seed: int = 0) -> Request:
    roles = ("user", "assistant")
    return Request([{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)], seed=seed)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "facts.md").write_text(FACTS, encoding="utf-8")
    return Index.build(folder / "index", [folder / "facts.md"], progress=False)


@pytest.fixture(scope="module")
def engine(tiny_model) -> Generator:
    return Generator.load(str(tiny_model), only_cpu=True)


@pytest.fixture
def library(index, engine) -> Library:
    return Library(index, engine, top_k=2)


# ---- citations


@pytest.mark.parametrize(
    ("answer", "shown", "cited", "unknown"),
    [
        ("多喝水[1]。", "多喝水[1]。", [1], []),
        ("甲[2]乙[1]丙[2]", "甲[2]乙[1]丙[2]", [2, 1], []),
        ("见[1, 3]和【1-2】。", "见[1][3]和[1][2]。", [1, 3, 2], []),
        ("编造[7]，半真[3，9]。", "编造，半真[3]。", [3], [7, 9]),
        ("[0]", "", [], [0]),
        ("剂量[5 mg]、[注1]、数组[", "剂量[5 mg]、[注1]、数组[", [], []),
        ("第一段[1", "第一段[1", [], []),
        ("范围[2-1]", "范围", [], []),
    ],
)
def test_citations_are_checked_however_the_answer_is_cut(answer, shown, cited, unknown):
    draw = random.Random(answer)
    for _ in range(30):
        citations = Citations(3)
        cuts = sorted(draw.choices(range(len(answer) + 1), k=4))
        pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
        assert "".join(citations.checked(iter(pieces))) == shown
        assert (citations.cited, citations.unknown) == (cited, unknown)


def test_text_is_not_held_back_longer_than_needed():
    citations = Citations(3)
    assert [citations.push(piece) for piece in ("血压", "高[", "1", "]。", "低[很")] == [
        "血压",
        "高",
        "",
        "[1]。",
        "低[很",
    ]


def test_uncited():
    assert uncited("限盐[1][2]，运动【3】。[5 mg]") == "限盐，运动。[5 mg]"


# ---- looking up


def test_the_model_reads_the_passages_under_the_prompt_of_evidence(library, engine):
    found = library.look_up(ask("家里自测血压多少算高血压？", seed=7), GREEDY)
    assert found.hits[0].passage.heading == "血压" and found.support >= library.min_support
    passages = [vars(hit.passage) for hit in found.hits]
    assert found.request == Request(with_documents(ask("家里自测血压多少算高血压？").messages, passages), seed=7)
    assert "[1]\n> facts.md · 血压\n> " in found.request.messages[-1]["content"]
    expected = engine.answer([found.request], GREEDY)[0]
    assert library.answer([ask("家里自测血压多少算高血压？", seed=7)], GREEDY)[0].text == uncited(expected.text)


def test_what_the_documents_do_not_say_is_refused_without_asking_the_model(index):
    class Silent:
        context_length = None
        batches_itself = False

        def measure(self, requests, sampling):
            assert not requests
            return []

    library = Library(index, Silent())
    request = ask("今天的机票多少钱？")
    stream = library.stream(request, GREEDY)
    assert "".join(stream) == stream.answer.text == REFUSAL
    assert stream.found.request is None and stream.found.support < library.min_support
    assert library.measure([request], GREEDY) == [0]
    assert library.details(request, GREEDY, stream.answer)["supported"] is False


def test_support_without_vectors_is_the_share_of_words_weighed_by_rarity(library):
    hits = library.index.search("低血糖 巧克力 测量", 2)
    assert library.support("低血糖", hits) == pytest.approx(1)
    assert library.support("低血糖", []) == library.support("太极拳", hits) == 0
    # 1 passage has 低血糖, none 太极拳, and 3 passages count as 100: log(1 + 99.5 / 1.5), log(1 + 100.5 / 0.5)
    assert library.support("低血糖 太极拳", hits[:1]) == pytest.approx(4.2096 / (4.2096 + 5.3083), abs=1e-4)


def test_follow_up_questions_are_searched_with_the_question_before(library):
    talk = ask("低血糖怎么办？", "吃糖[1]。", "那巧克力呢？")
    assert library.query(talk.messages) == "低血糖怎么办？\n那巧克力呢？"
    found = Library(library.index, library.engine, min_support=0).look_up(talk, GREEDY)
    assert found.hits[0].passage.heading == "低血糖"
    assert found.request.messages[1]["content"] == "吃糖。"  # numbers of an earlier turn mean nothing now
    assert talk.messages[1]["content"] == "吃糖[1]。"


def test_a_model_may_rewrite_follow_up_questions(index, engine):
    class Rewriter:
        context_length = None
        batches_itself = False

        def __init__(self, said: str) -> None:
            self.said, self.asked = said, []

        def answer(self, requests, sampling, batch_size):
            self.asked += requests
            [expected] = engine.answer(requests, Sampling(1))
            return [type(expected)(self.said, "stop", 1, 1, False)]

    talk = ask("低血糖怎么办？", "吃糖[1]。", "那巧克力呢？").messages
    rewriter = Rewriter("低血糖时能吃巧克力吗？\n")
    assert Library(index, rewriter, rewrite=True).query(talk) == "低血糖时能吃巧克力吗？"
    assert "低血糖怎么办？\nassistant: 吃糖。\nuser: 那巧克力呢？" in rewriter.asked[0].messages[0]["content"]
    for useless in ("", "好" * 300, "第一行\n第二行"):
        assert Library(index, Rewriter(useless), rewrite=True).query(talk) == "低血糖怎么办？\n那巧克力呢？"


# ---- fitting


def test_what_is_left_out_first():
    talk = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant", "user")]
    kept = [(len(messages), messages[0]["role"], hits) for messages, hits in smaller(talk, ["a", "b", "c"])]
    assert kept == [
        (6, "system", ["a", "b", "c"]),
        (6, "system", ["a", "b"]),
        (6, "system", ["a"]),
        (4, "system", ["a"]),
        (2, "system", ["a"]),
    ]


def test_the_prompt_fits_into_the_models_window(index, engine, monkeypatch):
    library = Library(index, engine, top_k=3, min_support=0.0)
    talk = ask("测量血压之前要做什么？", "安静休息五分钟。", "低血糖、烫伤以后立即做什么？")
    whole = library.look_up(talk, GREEDY)
    assert len(whole.hits) == 3 and not whole.shortened
    seen = set()
    for window in range(engine.measure([whole.request], GREEDY)[0] + 16, 300, -24):
        monkeypatch.setattr(engine, "context_length", window)
        try:
            found = library.look_up(talk, GREEDY)
        except ValueError as error:
            assert "--chunk_size" in str(error) and seen
            return
        assert engine.measure([found.request], GREEDY)[0] + GREEDY.max_new_tokens <= window
        assert found.request.messages[-1]["content"].startswith("请只根据")  # the rules are never cut
        seen.add((len(found.hits), found.shortened))
        answer = library.answer([talk], GREEDY)[0]
        assert answer.truncated == found.shortened
    pytest.fail("the window was never too short")


# ---- answering


def test_streamed_batched_and_refused_answers_agree(library):
    requests = [ask("血压怎么测量？"), ask("机票多少钱？"), ask("烫伤怎么办？", seed=3), ask("低血糖吃巧克力行吗？")]
    taken: dict[int, str] = {}
    rows = []
    answers = library.answer(
        requests,
        GREEDY,
        batch_size=2,
        progress=rows.append,
        finished=lambda numbers, done: taken.update(zip(numbers, (one.text for one in done), strict=True)),
    )
    assert sum(rows) == 4 and [taken[n] for n in range(4)] == [answer.text for answer in answers]
    assert answers[1].text == REFUSAL
    for request, answer in zip(requests, answers, strict=True):
        stream = library.stream(request, GREEDY)
        assert "".join(stream) == answer.text == stream.answer.text


def test_a_closed_stream_keeps_what_was_shown(library):
    stream = library.stream(ask("烫伤怎么办？", seed=1), Sampling(max_new_tokens=200, temperature=1.0))
    first = next(iter(stream))
    stream.close()
    assert stream.answer.text == first and stream.answer.finish_reason == "cancelled"


@pytest.mark.parametrize(("flags", "message"), [({"top_k": 0}, "--top_k"), ({"min_support": 1.5}, "--min_support")])
def test_wrong_settings(index, engine, flags, message):
    with pytest.raises(ValueError, match=message):
        Library(index, engine, **flags)


# ---- chatpdf.py


@pytest.fixture(scope="module")
def documents(root) -> Path:
    return root / "data" / "rag" / "documents"


def run(root, *flags, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "chatpdf.py", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def test_a_file_of_questions(root, tiny_model, tmp_path, documents):
    questions = tmp_path / "questions.jsonl"
    rows = [json.loads(line) for line in (root / "data/rag/questions.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [rows[28], rows[52], rows[-1]]  # answered, a follow-up, not in the documents
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    flags = ("--base_model", tiny_model, "--only_cpu", "--corpus", documents, "--index_dir", tmp_path / "index")
    done = run(root, *flags, "--data_file", questions, "--output_file", output, "--max_new_tokens", 8)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [{name: row[name] for name in asked} for row, asked in zip(written, rows, strict=True)] == rows
    assert [row["supported"] for row in written] == [True, True, False]
    assert written[2]["prediction"] == REFUSAL and written[2]["citations"] == []
    assert written[0]["passages"][0].keys() >= {"text", "file", "page", "heading", "score", "words", "cosine"}
    assert written[1]["query"].split("\n") == [rows[1]["history"][0][0], rows[1]["instruction"]]


def test_an_answer_is_no_document(root, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("头痛时应多休息。", encoding="utf-8")
    flags = ("--base_model", tiny_model, "--only_cpu", "--corpus", tmp_path, "--index_dir", tmp_path / "index")
    questions = root / "data/rag/questions.jsonl"
    done = run(root, *flags, "--data_file", questions, "--output_file", tmp_path / "answers.jsonl")
    assert done.returncode == 1 and "lies in --corpus and would be read as a document" in done.stderr


def test_a_chat(root, tiny_model, tmp_path, documents):
    flags = ("--base_model", tiny_model, "--only_cpu", "--corpus", documents, "--index_dir", tmp_path / "index")
    done = run(
        root, *flags, "--interactive", "--max_new_tokens", 6, input="成人血小板的正常范围是多少？\n机票多少钱\nexit\n"
    )
    assert done.returncode == 0, done.stderr
    assert "laboratory.xlsx" in done.stdout and "[1]" in done.stdout
    assert REFUSAL in done.stdout and "too little in the documents" in done.stdout
    assert "no embedding model" in done.stderr and "不能代替医生" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--interactive", "give either --base_model or --api_base"),
        ("--base_model x", "give either --interactive or --data_file"),
        ("--base_model x --interactive --top_k 0", "--top_k: expected at least 1"),
        ("--base_model x --interactive --min_support 2", "--min_support: expected"),
        ("--base_model x --interactive --sim 2", "unrecognized arguments"),
    ],
)
def test_wrong_flags_are_refused(capsys, flags, message):
    import chatpdf

    with pytest.raises(SystemExit):
        chatpdf.parse_args(flags.split())
    assert message in capsys.readouterr().err


def test_without_an_index_or_documents(tmp_path):
    import chatpdf

    flags = ["--base_model", "x", "--interactive", "--index_dir", str(tmp_path / "none")]
    with pytest.raises(FileNotFoundError, match="is no index"):
        chatpdf.open_library(chatpdf.parse_args(flags))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="holds no passage"):
        chatpdf.open_library(chatpdf.parse_args([*flags, "--corpus", str(tmp_path / "empty.txt")]))


def test_a_server_answers_from_the_documents(index, engine):
    from openai_server import serving

    with serving(engine) as server:
        library, local = Library(index, Server(server.address)), Library(index, engine)
        request = ask("烫伤怎么办？")
        assert library.answer([request], GREEDY)[0].text == local.answer([request], GREEDY)[0].text


def test_an_added_file_does_not_take_the_place_of_another_of_its_name(tmp_path):
    folder, mine, theirs = (tmp_path / name for name in ("library", "mine", "theirs"))
    for place, text in ((folder, "一"), (mine, "一"), (theirs, "二")):
        place.mkdir()
        (place / "指南.md").write_text(text)
    assert free_name(folder, mine / "指南.md") == folder / "指南.md"  # the same file once more
    assert free_name(folder, theirs / "指南.md") == folder / "指南 (2).md"
