"""Scores of text against nltk, sacrebleu, rouge-score and the textbook's table for the longest common subsequence."""

import random
import time
import warnings

import numpy as np
import pytest

from medical_qwen import metrics
from medical_qwen.metrics import BLEU, SCORES, bleu, character_tokens, clean, lcs_length, rouge, row_statistics, scores


def random_corpus(seed: int, rows: int = 40, references: int = 1, shortest: int = 4, words: int = 8) -> list[tuple]:
    """(prediction, references) as token lists: noisy copies, so that all n-gram orders have matches."""
    draw = random.Random(seed)
    corpus = []
    for _ in range(rows):
        prediction = [f"w{draw.randrange(words)}" for _ in range(draw.randint(shortest, 25))]
        variants = [
            [token if draw.random() < 0.8 else f"w{draw.randrange(words)}" for token in prediction][
                : draw.randint(max(1, shortest - 2), 30)
            ]
            for _ in range(references)
        ]
        corpus.append((prediction, variants))
    return corpus


def statistics_of(corpus: list[tuple]) -> np.ndarray:
    return np.stack([row_statistics(prediction, references) for prediction, references in corpus])


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_corpus_bleu_is_that_of_nltk_and_sacrebleu(seed, references):
    import sacrebleu
    from nltk.translate.bleu_score import corpus_bleu

    corpus = random_corpus(seed, references=references)
    ours = bleu(statistics_of(corpus).sum(axis=0), "none")
    hypotheses = [" ".join(prediction) for prediction, _ in corpus]
    streams = [[" ".join(known[i]) for _, known in corpus] for i in range(references)]
    for order in range(1, 5):
        theirs = corpus_bleu([known for _, known in corpus], [p for p, _ in corpus], weights=[1 / order] * order)
        assert ours[order - 1] == pytest.approx(100 * theirs, abs=1e-6)
        scorer = sacrebleu.BLEU(tokenize="none", smooth_method="none", effective_order=True, max_ngram_order=order)
        assert ours[order - 1] == pytest.approx(scorer.corpus_score(hypotheses, streams).score, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_row_bleu_is_sacrebleus_sentence_bleu_with_few_matches_and_short_rows(seed):
    import sacrebleu

    corpus = random_corpus(seed, rows=200, references=2, shortest=1, words=40)
    for prediction, references in corpus:
        ours = bleu(row_statistics(prediction, references), "exp")
        for order in range(1, 5):
            scorer = sacrebleu.BLEU(tokenize="none", smooth_method="exp", effective_order=True, max_ngram_order=order)
            theirs = scorer.sentence_score(" ".join(prediction), [" ".join(known) for known in references]).score
            assert ours[order - 1] == pytest.approx(theirs, abs=1e-6)


def test_row_bleu_is_nltks_method3_where_a_row_has_four_tokens_and_a_match():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    compared = 0
    for prediction, references in random_corpus(11, rows=200, words=30):
        statistics = row_statistics(prediction, references)
        if statistics[2] == 0:
            continue
        theirs = sentence_bleu(references, prediction, smoothing_function=SmoothingFunction().method3)
        assert bleu(statistics, "exp")[3] == pytest.approx(100 * theirs, abs=1e-6)
        compared += statistics[5] == 0
    assert compared > 20, "rows in which smoothing matters"


def test_corpus_without_a_match_of_an_order_scores_zero_as_in_nltk():
    from nltk.translate.bleu_score import corpus_bleu

    prediction, reference = list("abcde"), list("abxde")
    ours = bleu(row_statistics(prediction, [reference]), "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [corpus_bleu([[reference]], [prediction], weights=[1 / n] * n) for n in range(1, 5)]
    assert ours == pytest.approx([100 * score for score in theirs], abs=1e-6)
    assert ours[2] == 0 and ours[1] > 0


@pytest.mark.parametrize("references", [1, 3])
def test_rouge_is_that_of_rouge_score(references):
    from rouge_score.rouge_scorer import RougeScorer

    class Given:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Given())
    for prediction, known in random_corpus(3, rows=150, references=references, shortest=2, words=12):
        theirs = scorer.score_multi([" ".join(reference) for reference in known], " ".join(prediction))
        ours = rouge(row_statistics(prediction, known))
        for index, name in enumerate(("rouge1", "rouge2", "rougeL")):
            if name == "rouge2" and len(prediction) == 1 and min(map(len, known)) == 1:
                continue  # no bigram anywhere: rouge-score says 0, here the unigrams count
            assert ours[index] == pytest.approx([100 * part for part in theirs[name]], abs=1e-6)


def naive_lcs(first: str, second: str) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize("alphabet", ["ab", "abcd", "abcdefghijklmnopqrst"])
def test_lcs_is_that_of_the_table(alphabet):
    draw = random.Random(len(alphabet))
    for _ in range(300):
        first = "".join(draw.choices(alphabet, k=draw.randint(0, 70)))
        second = "".join(draw.choices(alphabet, k=draw.randint(0, 70)))
        assert lcs_length(first, second) == naive_lcs(first, second)


@pytest.mark.parametrize("level", metrics.TOKENIZERS)
def test_a_pair_of_7000_characters_takes_under_a_second(level):
    draw = random.Random(0)
    texts = ["".join(draw.choices("患者应当在医生指导下用药并定期复查血压，", k=7000)) for _ in range(2)]
    metrics.score_texts(["热身"], [["热身"]], level)  # jieba loads its dictionary
    start = time.process_time()
    metrics.score_texts([texts[0]], [[texts[1]]], level)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("level", metrics.TOKENIZERS)
@pytest.mark.parametrize("text", ["是", "A", "3.5", "多喝水", "Drink water.", "每日 2 次，每次 5mg。"])
def test_an_identical_answer_scores_100(text, level):
    scored = metrics.score_texts([text], [[text]], level)
    assert scored.corpus == pytest.approx(100) and scored.mean == pytest.approx(100)


def test_one_wrong_character_scores_0():
    assert metrics.score_texts(["否"], [["是"]], "character").mean.tolist() == [0] * 7


@pytest.mark.parametrize("level", metrics.TOKENIZERS)
def test_scrambled_english_is_punished(level):
    reference = "take two tablets after every meal and drink a glass of water"
    words = reference.split()
    random.Random(1).shuffle(words)
    letters = list(reference)
    random.Random(1).shuffle(letters)
    order, spelling = (
        metrics.score_texts([text], [[reference]], level) for text in (" ".join(words), "".join(letters))
    )
    assert order.mean[SCORES.index("BLEU-4")] < 30 and order.corpus[SCORES.index("ROUGE-2")] < 30
    assert spelling.mean[SCORES.index("BLEU-1")] < 20, "the same letters in another order are other words"


@pytest.mark.parametrize("level", metrics.TOKENIZERS)
def test_a_sentence_repeated_five_times_is_punished(level):
    once = "发热时应多喝水，注意休息。"
    scored = metrics.score_texts([once * 5], [[once]], level)
    values = dict(zip(SCORES, scored.mean, strict=True))
    assert values["BLEU-1"] == pytest.approx(20) and values["BLEU-4"] < 20
    assert values["ROUGE-1"] == pytest.approx(values["ROUGE-L"]) == pytest.approx(100 / 3)
    assert scored.repetition[0] > 0.7 and scored.length_ratio == pytest.approx(5)
    assert metrics.score_texts([once], [[once]], level).repetition[0] == 0


def test_empty_predictions_count_as_zero_and_against_the_corpus():
    reference = "先测量血压，再决定是否用药。"
    full = metrics.score_texts([reference, reference], [[reference]] * 2, "character")
    for empty in ("", "  ", "<think>还没想完", "<think>想</think>"):
        scored = metrics.score_texts([reference, empty], [[reference]] * 2, "character")
        assert scored.rows[1].tolist() == [0] * 7
        assert scored.mean == pytest.approx(full.mean / 2)
        assert scored.corpus[:4] == pytest.approx(100 * np.exp(-1)), "brevity: half of the reference's length"
        assert scored.corpus[4:] == pytest.approx(200 / 3)


def test_nothing_but_empty_predictions_is_zero_everywhere():
    [report] = metrics.compare_texts([metrics.score_texts([""], [["多休息"]], "character")], samples=10, seed=0)
    zero = {"value": 0, "low": 0, "high": 0}
    assert report["corpus"]["BLEU-4"] == report["mean"]["ROUGE-L"] == zero
    assert [report[name] for name in ("distinct-1", "distinct-2", "length_ratio", "repetition-4")] == [0] * 4


def test_thinking_and_full_width_signs_do_not_count():
    assert clean("<think>也许\n是A</think>\n血压１２０／８０ｍｍＨｇ") == "血压120/80mmHg"
    scored = metrics.score_texts(["<think>长长的思考</think>ＣＴ检查！"], [["CT检查!"]], "character")
    assert scored.mean == pytest.approx(100) and scored.length_ratio == 1


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("多喝水", ["多", "喝", "水"]),
        ("HbA1c为6.5%", ["HbA1c", "为", "6.5", "%"]),
        ("5mg 每日", ["5", "mg", "每", "日"]),
        ("COVID-19", ["COVID", "-", "19"]),
        ("𠮷田ひらカナ한글", ["𠮷", "田", "ひ", "ら", "カ", "ナ", "한", "글"]),
        ("naïve β-blocker", ["naïve", "β", "-", "blocker"]),
        ("snake_case\n", ["snake", "_", "case"]),
    ],
)
def test_character_tokens(text, tokens):
    assert character_tokens(text) == tokens


def test_words_are_those_of_jieba():
    assert metrics.word_tokens("高血压患者 应当低盐饮食") == ["高血压", "患者", "应当", "低盐", "饮食"]


def test_several_references_take_the_best():
    scored = metrics.score_texts(["多休息"], [["卧床静养", "多休息"]], "character")
    assert scored.mean == pytest.approx(100)


def test_distinct_counts_the_corpus():
    scored = metrics.score_texts(["多喝水", "多喝水"], [["多喝水"]] * 2, "character")
    assert scored.distinct == (3 / 6, 2 / 4)


@pytest.mark.parametrize(
    ("predictions", "references", "level", "message"),
    [
        (["a"], [["a"]], "letter", "level: expected one of character, word, got 'letter'"),
        ([], [], "word", "got 0 and 0"),
        (["a", "b"], [["a"]], "word", "got 2 and 1"),
        (["a", "b"], [["a"], ["<think>x</think>"]], "character", "row 2: reference: expected text"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions, references, level, message):
    with pytest.raises(ValueError, match=message):
        metrics.score_texts(predictions, references, level)


def test_smoothing_must_have_a_name():
    with pytest.raises(ValueError, match="expected none or exp, got 'floor'"):
        bleu(row_statistics(["a"], [["a"]]), "floor")


def test_bootstrap_is_seeded_paired_and_covers():
    corpus = random_corpus(5, rows=60)
    system = metrics.TextScores(statistics_of(corpus), scores(statistics_of(corpus), "exp"), (1.0, 1.0))
    draws = system.bootstrap(250, seed=7)
    assert draws.shape == (250, 2, 7)
    assert np.array_equal(draws, system.bootstrap(250, seed=7)) and not np.array_equal(
        draws, system.bootstrap(250, seed=8)
    )
    low, high = metrics.interval(draws)
    assert (low <= [system.corpus, system.mean]).all() and ([system.corpus, system.mean] <= high).all()
    itself = metrics.compare_texts([system, system], samples=50, seed=0)[1]
    assert itself["mean"]["BLEU-4"]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one():
    rows = np.random.default_rng(0).uniform(0, 100, size=(400, 7))
    system = metrics.TextScores(np.ones((400, 20), dtype=np.int64), rows, (1.0, 1.0))
    low, high = metrics.interval(system.bootstrap(2000, seed=1)[:, 1])
    normal = 1.96 * rows.std(axis=0) / 20
    assert low == pytest.approx(rows.mean(axis=0) - normal, abs=0.5)
    assert high == pytest.approx(rows.mean(axis=0) + normal, abs=0.5)


def test_paired_difference_of_a_system_that_is_always_better_excludes_zero():
    reference = "建议清淡饮食，适量运动，定期复查。"
    worse, better = ([reference[: n + cut] for n in range(6, 14)] for cut in (0, 2))
    systems = [metrics.score_texts(texts, [[reference]] * 8, "character") for texts in (worse, better)]
    first, second = metrics.compare_texts(systems, samples=200, seed=0)
    assert "difference" not in first["mean"]["ROUGE-L"]
    difference = second["mean"]["ROUGE-L"]["difference"]
    assert difference["value"] == pytest.approx(systems[1].mean[6] - systems[0].mean[6])
    assert 0 < difference["low"] <= difference["value"] <= difference["high"]
    assert set(first) == {"corpus", "mean", "distinct-1", "distinct-2", "length_ratio", "repetition-4"}
    assert set(first["corpus"]["ROUGE-1"]) == {"value", "low", "high", "precision", "recall"}
    assert set(BLEU) < set(first["corpus"])


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(right, total, low, high):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert metrics.wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)
    assert metrics.wilson_interval(total - right, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_refuses_nonsense():
    with pytest.raises(ValueError, match="got 3 of 2"):
        metrics.wilson_interval(3, 2)


def test_shares_are_compared_in_pairs():
    first, second = metrics.compare_shares([[True, False] * 20, [True] * 40], samples=300, seed=0)
    assert first["value"] == 50 and first["low"] == pytest.approx(100 * metrics.wilson_interval(20, 40)[0])
    assert second["value"] == 100 and second["difference"]["value"] == 50
    assert 30 < second["difference"]["low"] < 50 < second["difference"]["high"] < 70
