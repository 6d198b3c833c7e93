"""The words of a text as BM25 counts them: jieba's, in lower case, without punctuation."""

import unicodedata


def words(text: str) -> list[str]:
    """Words of Chinese and other text. Full-width letters and digits equal narrow ones.

    jieba-rs cuts as jieba does without its hidden Markov model, and some ten times as fast.
    """
    try:
        import rjieba
    except ImportError as error:
        raise ImportError("search by words needs rjieba to cut Chinese: pip install rjieba==0.2.2") from error
    cut = rjieba.cut(unicodedata.normalize("NFKC", text).lower(), False)
    return [word for word in cut if word.isalnum() or (len(word) > 1 and any(map(str.isalnum, word)))]
