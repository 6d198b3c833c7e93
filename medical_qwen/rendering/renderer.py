"""`Renderer`: messages to ids, loss mask, generation prompt, preference pair, at any maximal length."""

import logging
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from template import TEMPLATES

from .encoding import Encoder, Span
from .fitting import Truncation, exchanges, shorten
from .layout import FIELDS, SLOT, Layout, LayoutBuilder, outline, shape
from .messages import Message, ToolCalls, checked, reveal, shield
from .rendered import Region, Rendered

logger = logging.getLogger(__name__)
_MAX_LAYOUTS = 4096


class Pair(NamedTuple):
    """Ids of a prompt and of the answers that may follow it, each ending with its end token unless it was cut."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]


class Renderer:
    """Renders conversations with the chat template of `tokenizer`.

    `enable_thinking` is handed to the template if given. Layouts of conversations of the same shape are kept, so a
    later change of `tokenizer.chat_template` needs a new renderer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, enable_thinking: bool | None = None) -> None:
        name = type(tokenizer).__name__
        if not tokenizer.is_fast:
            raise ValueError(f"{name} is a slow tokenizer: one with a tokenizer.json is needed (positions of tokens)")
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer has no chat template: choose one with --template_name ({', '.join(TEMPLATES)})"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos token, so no answer could end: set eos_token in its config")
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self._options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        template = tokenizer.get_chat_template()
        self._splits_thoughts = "reasoning_content" in template
        self._encoder = Encoder(tokenizer, template)
        self._builder = LayoutBuilder(
            lambda messages, generation: self._write(messages, None, generation),
            self._encoder.pattern,
            tokenizer.eos_token,
        )
        self._encoder.set_structural(self._builder.example)
        marks = [re.escape(mark) for mark in self._builder.end_marks]
        self._shielded = re.compile("|".join([self._encoder.pattern.pattern, *marks, SLOT.pattern]))
        self._layouts: dict[Any, Layout] = {}
        self._tool_calls: ToolCalls | None = None
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Renderer, (self.tokenizer, self.enable_thinking)  # the same bytes whatever was rendered before

    # ---- what callers use

    def render(self, messages: Sequence[Message], tools: list[dict] | None = None) -> Rendered:
        """The whole conversation. The ids are those of `tokenizer.apply_chat_template(messages, tools=tools)`.

        Except that control tokens spelled out in a message are tokenized as ordinary text.
        """
        return self._render(messages, tools, generation=False)

    def prompt(
        self, messages: Sequence[Message], tools: list[dict] | None = None, max_length: int | None = None
    ) -> list[int]:
        """Ids of the conversation up to and with the header of the answer to come, at most `max_length` of them."""
        return self.fit_prompt(messages, max_length, tools)[0]

    def fit_prompt(
        self, messages: Sequence[Message], max_length: int | None, tools: list[dict] | None = None
    ) -> tuple[list[int], Truncation]:
        """`prompt`, and what it lost: first the oldest exchanges, then the beginning of the question."""
        built, dropped, cut = shorten(messages, max_length, lambda kept: [self._render(kept, tools, generation=True)])
        ids = built[0].input_ids
        if max_length is not None and len(ids) > max_length:
            raise ValueError(
                f"max_length {max_length} is too short: template and system prompt alone take {len(ids)} tokens"
            )
        return ids, Truncation(len(exchanges(messages)[1]), dropped, len(ids) + cut, cut)

    def fit(
        self, messages: Sequence[Message], max_length: int | None, tools: list[dict] | None = None
    ) -> tuple[Rendered | None, Truncation]:
        """The conversation for training, in at most `max_length` tokens, and what it lost.

        What follows the last answer is left out: nothing is learned there. If too long, first the oldest exchanges go,
        then the beginning of the last question, then the end of the answer, which then has no end token. A header is
        never cut from its answer. None if no learned token fits. Where the template does not end the last answer
        (ChatGLM3), the eos token is added, or the model would never learn to stop.
        """
        messages = list(messages)
        while messages and messages[-1].get("role") != "assistant":
            messages.pop()
        if not messages:
            return None, Truncation(left_out=True)
        built: list[list[Rendered]] = []

        def build(kept: list[Message]) -> list[Rendered]:
            built.append([self._whole(kept, tools)])
            return built[-1]

        (rendered,), dropped, cut = shorten(messages, max_length, build)
        rendered = rendered.cut(max_length)
        learned, total = sum(rendered.mask), sum(built[0][0].mask)
        truncation = Truncation(
            exchanges=len(exchanges(messages)[1]),
            exchanges_dropped=dropped,
            prompt_tokens=len(built[0][0].mask) - total,
            prompt_tokens_cut=cut,
            answer_tokens=total,
            answer_tokens_lost=max(total - learned, 0),
            left_out=not learned,
        )
        return (rendered if learned else None), truncation

    def to_score(
        self,
        conversation: Sequence[Message],
        max_length: int | None = None,
        tools: list[dict] | None = None,
        finished: bool = True,
    ) -> list[int]:
        """What a reward model reads of a conversation: the ids that training made of a prompt and one of its answers.

        `finished`: False for an answer that was cut off, which has no end token.
        """
        pair, lost = self.pair(conversation[:-1], [conversation[-1:]], max_length, tools)
        if pair is None:
            raise ValueError(f"no token of the answer fits into the {max_length} positions of the reward model")
        ids = [*pair.prompt_ids, *pair.completion_ids[0]]
        return ids if finished or lost.answer_tokens_lost else ids[:-1]

    def pair(
        self,
        prompt: Sequence[Message],
        completions: Sequence[Sequence[Message]],
        max_length: int | None = None,
        tools: list[dict] | None = None,
    ) -> tuple[Pair | None, Truncation]:
        """Ids of one prompt and of each of its answers (chosen, rejected, …), and what they lost.

        Every answer is one assistant message. All share the prompt, so all lose the same exchanges where one of them
        is too long. Prompt and answer together are the ids of `render` of the whole. None if an answer has no room.
        """
        for completion in completions:
            if [message.get("role") for message in completion] != ["assistant"]:
                got = [message.get("role") for message in completion]
                raise ValueError(f"a completion is one message of role assistant, got roles {got}")
        built: list[list[Rendered]] = []

        def build(kept: list[Message]) -> list[Rendered]:
            built.append(self._with_answers(kept, completions, tools))
            return built[-1]

        whole, dropped, cut = shorten(prompt, max_length, build)
        first, begin = _common(whole), _common(built[0])
        whole = [one.cut(max_length) for one in whole]
        answers = [one.input_ids[first : one.needed()] for one in whole]
        total = sum(one.needed() - begin for one in built[0])
        truncation = Truncation(
            exchanges=len(exchanges(prompt)[1]),
            exchanges_dropped=dropped,
            prompt_tokens=begin,
            prompt_tokens_cut=cut,
            answer_tokens=total,
            answer_tokens_lost=total - sum(map(len, answers)),
            left_out=not all(answers),
        )
        return (Pair(whole[0].input_ids[:first], answers) if all(answers) else None), truncation

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens at which generation ends: eos and the template's end-of-turn token, where that is another."""
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *self._end_tokens()]))

    @property
    def stop_strings(self) -> list[str]:
        """Texts at which generation ends, beyond `stop_token_ids`."""
        jinja = self.tokenizer.get_chat_template()
        named = [text for known in TEMPLATES.values() if jinja.endswith(known.jinja) for text in known.stop_strings]
        tokens = {self.tokenizer.eos_token, *self._end_tokens().values()}
        texts = [*self._builder.end_marks, *named]
        return [text for text in dict.fromkeys(texts) if text not in tokens and text in self._builder.example]

    @property
    def control_tokens(self) -> dict[str, bool]:
        """The texts that the tokenizer takes for control tokens; true for those that mark turns."""
        return {text: id_ in self._encoder.structural for id_, text in self._encoder.controls.items()}

    def colour(self, rendered: Rendered) -> str:
        """The text with what is learned in green, for a terminal."""
        parts, learned = [], 0
        for i, on in enumerate(rendered.mask):
            if on != learned:
                parts.append("\033[32m" if on else "\033[0m")
                learned = on
            parts.append(
                rendered.text[rendered.starts[i] : rendered.starts[i + 1] if i + 1 < len(rendered.mask) else None]
            )
        return "".join(parts) + ("\033[0m" if learned else "")

    # ---- how it is done

    def _write(self, messages: list[Message], tools: list[dict] | None, generation: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=generation, **self._options
            )
        except (TemplateError, TypeError, KeyError, IndexError, AttributeError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ValueError(f"the chat template refuses the conversation ({roles}): {error}") from error

    def _render(
        self, messages: Sequence[Message], tools: list[dict] | None, generation: bool, cuts: Sequence[int] = ()
    ) -> Rendered:
        hidden: list[str] = []
        messages = checked(messages)
        if tools or any(len(message) > 2 for message in messages):
            messages, tools = self._shield(messages, tools, hidden)
        text = self._write(messages, tools, generation)
        for split in (True, False) if self._splits_thoughts else (False,):
            skeleton, texts = outline(messages, split)
            key = (shape(skeleton), generation, repr(tools) if tools else None)
            for known in (True, False):  # a second time from new: some templates write the date
                layout = self._layouts.get(key) if known else None
                layout = layout or self._layout(key, skeleton, tools, generation)
                if (aligned := layout.align(text, texts)) is not None:
                    return self._assemble(text, layout, aligned, messages, hidden, cuts)
        raise ValueError(
            "cannot tell the chat template's own words from those of the messages: it changes the messages in a way "
            f"that is not understood. It wrote {text[:400]!r}"
        )

    def _shield(
        self, messages: list[Message], tools: list[dict] | None, hidden: list[str]
    ) -> tuple[list[Message], list[dict] | None]:
        """Tool calls as the template reads them, and control tokens out of everything that is not a slot."""
        if any(message.get("tool_calls") for message in messages):
            if self._tool_calls is None:
                self._tool_calls = ToolCalls(lambda probe: self._write(probe, None, False))
            if not self._tool_calls.spellings:
                self._warn("the chat template does not write tool calls")
            messages = [self._tool_calls.spell(message) for message in messages]
        pattern = self._shielded
        messages = [
            {key: value if key in ("role", *FIELDS) else shield(value, pattern, hidden) for key, value in one.items()}
            for one in messages
        ]
        return messages, shield(tools, pattern, hidden) or None

    def _layout(self, key: Any, skeleton: list[Message], tools: list[dict] | None, generation: bool) -> Layout:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        layout = self._builder.build(
            skeleton, lambda messages, prompt: self._write(messages, tools, prompt), generation
        )
        self._layouts[key] = layout
        for slot in layout.dropped:
            self._warn(f"the chat template does not write a message of role {skeleton[slot.message]['role']}")
        return layout

    def _assemble(
        self,
        text: str,
        layout: Layout,
        aligned: tuple[list[int], list[tuple[int, int]]],
        messages: Sequence[Message],
        hidden: list[str],
        cuts: Sequence[int],
    ) -> Rendered:
        positions, spans = aligned
        contents = [
            Span(start, end, slot.message, messages[slot.message]["role"] == "assistant")
            for (start, end), slot in zip(spans, layout.slots, strict=True)
        ]
        answers = [
            Region(
                positions[answer.begin.piece] + answer.begin.offset,
                positions[answer.end.piece] + answer.end.offset,
                answer.message,
                answer.closed,
            )
            for answer in layout.answers
        ]
        forbidden = contents
        if hidden:
            text, gained = reveal(text, hidden, contents)

            def moved(at: int) -> int:
                return at + sum(length for place, length in gained if place < at)

            contents = [span._replace(start=moved(span.start), end=moved(span.end)) for span in contents]
            answers = [region._replace(start=moved(region.start), end=moved(region.end)) for region in answers]
            names = [Span(moved(place), moved(place) + length + 1, -1, False) for place, length in gained]
            forbidden = sorted([*contents, *names])
        return Rendered.of(text, self._encoder.encode(text, forbidden, cuts), contents, answers)

    def _whole(self, messages: Sequence[Message], tools: list[dict] | None, cuts: Sequence[int] = ()) -> Rendered:
        """The conversation, its last answer ended even where the template does not."""
        rendered = self._render(messages, tools, generation=False, cuts=cuts)
        return rendered.closed(self.tokenizer.eos_token, self.tokenizer.eos_token_id)

    def _with_answers(
        self, prompt: list[Message], completions: Sequence[Sequence[Message]], tools: list[dict] | None
    ) -> list[Rendered]:
        """The prompt with each of the answers, all with the same tokens before the answer."""

        def whole(cuts: Sequence[int]) -> list[Rendered]:
            return [self._whole([*prompt, *answer], tools, cuts) for answer in completions]

        built = whole(())
        if any(not one.answers or one.answers[-1].message != len(prompt) for one in built):
            raise ValueError("the chat template does not write the answer of a pair")
        start = min(one.answers[-1].start for one in built)
        if len({one.text[:start] for one in built}) > 1:
            raise ValueError("the chat template writes the prompt differently for the answers of a pair")
        prompts = {tuple(one.input_ids[: bisect_left(one.starts, start)]) for one in built}
        # Where a token spans the end of the prompt: separate there, as it is when the model generates.
        return built if len(prompts) == 1 and all(start in one.starts for one in built) else whole([start])

    def _end_tokens(self) -> dict[int, str]:
        """The end-of-turn marks that are single tokens where the template writes them."""
        written = {
            id_ for text in (self._builder.example, self._builder.finished) for id_ in self._encoder.encode(text).ids
        }
        controls = self._encoder.controls
        return {id_: controls[id_] for id_ in controls if id_ in written and controls[id_] in self._builder.end_marks}

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s: the model does not see it", message)


def _common(whole: Sequence[Rendered]) -> int:
    """How many tokens come before the last answer in all of them."""
    start = min(one.answers[-1].start for one in whole)
    return bisect_left(whole[0].starts, start)
