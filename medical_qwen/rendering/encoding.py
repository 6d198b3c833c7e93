"""Text to token ids, exactly as the tokenizer does it, except that the words of others never become control tokens."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

# Characters of no script that no vocabulary merges with its neighbours; one of them is put inside a forged control
# token before tokenization and its own tokens are taken out again.
_GUARDS = ("\ue000", "\U000f0000", "\u2060", "\u0001")
_MARKUP = re.compile(r"[<\[{|(].*[>\]}|)]", re.DOTALL)


class Span(NamedTuple):
    """A text of message number `message` at `start:end` of the rendered string; `learned` if the assistant says it."""

    start: int
    end: int
    message: int
    learned: bool


@dataclass(frozen=True)
class Encoding:
    """Token ids with the position in the text at which each begins and ends (in characters)."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class Encoder:
    """Tokenizes rendered conversations.

    Control tokens are the special tokens and those added tokens that look like markup or that the chat template
    writes. Other added tokens (runs of spaces, words of an extended vocabulary) are ordinary text. What the assistant
    says may hold the control tokens that are not special (`<think>`, `<tool_call>`), but not those in `structural`,
    with which the template marks turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        self.controls: dict[int, str] = {
            id_: token.content
            for id_, token in added.items()
            if token.special
            or (len(token.content.strip()) > 1 and (_MARKUP.fullmatch(token.content) or token.content in template))
        }
        self.structural = {id_ for id_ in self.controls if added[id_].special} | set(tokenizer.all_special_ids)
        texts = sorted(self.controls.values(), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")

    def set_structural(self, text: str) -> None:
        """Count the control tokens of `text`, the template's own words around plain turns, as marks of a turn."""
        words = set(self.pattern.findall(text)) - {"<think>", "</think>"}
        self.structural |= {id_ for id_, content in self.controls.items() if content in words}

    def encode(self, text: str, contents: Sequence[Span] = (), cuts: Sequence[int] = ()) -> Encoding:
        """Ids of `text`; a token ends at each of `cuts`, and none in `contents` is a control token that may not be.

        `contents` are in order of position. Without forged control tokens the ids are the tokenizer's own.
        """
        cuts = sorted(set(cuts))
        while True:
            encoding = self._encode(text, cuts)
            forged = self._forged(text, encoding, contents)
            if not forged:
                return encoding
            if set(forged) <= set(cuts):
                raise ValueError(
                    f"cannot keep control tokens out of the text {text[forged[0] - 20 : forged[0] + 20]!r}"
                )
            cuts = sorted({*cuts, *forged})

    def _forged(self, text: str, encoding: Encoding, contents: Sequence[Span]) -> list[int]:
        """Where to cut so that no control token remains in the contents."""
        controls, found = self.controls, []
        for i in [i for i, id_ in enumerate(encoding.ids) if id_ in controls]:
            start, end = encoding.starts[i], encoding.ends[i]
            start += len(text[start:end]) - len(text[start:end].lstrip())  # some take the spaces beside them along
            k = bisect_right(contents, start, key=lambda span: span.start) - 1
            inside = k >= 0 and start < contents[k].end
            if inside and (not contents[k].learned or encoding.ids[i] in self.structural):
                found.append(start + max(1, (end - start) // 2))
        return found

    def _encode(self, text: str, cuts: list[int]) -> Encoding:
        if not cuts:
            return Encoding(*self._tokens(text))
        for guard in _GUARDS:
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            ids, starts, ends = self._tokens(guard.join(pieces))
            guards = [cut + i for i, cut in enumerate(cuts)]
            kept: tuple[list[int], list[int], list[int]] = ([], [], [])
            for id_, start, end in zip(ids, starts, ends, strict=True):
                before = bisect_left(guards, start)
                if bisect_left(guards, end) == before:  # no guard within start:end
                    for values, value in zip(kept, (id_, start - before, end - before), strict=True):
                        values.append(value)
                elif end - start > 1:
                    break  # the guard grew together with its neighbour
            else:
                return Encoding(*kept)
        raise ValueError("this tokenizer merges every guard character with its neighbours; cannot tokenize safely")

    def _tokens(self, text: str) -> tuple[list[int], list[int], list[int]]:
        backend = self._backend
        # A call with padding or truncation leaves its settings behind in the backend.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        encoded = backend.encode(text, add_special_tokens=False)
        offsets = encoded.offsets
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        for i in [i for i in range(1, len(starts)) if starts[i] > ends[i - 1]]:
            # Some tokenizers do not count the space in front of a token, or an accent that was composed with a letter.
            if text[ends[i - 1] : starts[i]].isspace():
                starts[i] = ends[i - 1]
            else:
                ends[i - 1] = starts[i]
        return encoded.ids, starts, ends
