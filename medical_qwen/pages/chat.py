"""The chat of a page: chatbot, question box, settings, and what happens on them.

One `Chat` serves all users. What a user said is in `Chat.state`, one `Conversation` a browser tab: a reload begins a
new one.
"""

import html
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medical_qwen.causal import Network
from medical_qwen.causal.panel import panel
from medical_qwen.evidence import with_documents
from medical_qwen.generation import Answer, Request, Sampling
from medical_qwen.pages.conversation import LONGEST_QUESTION, Conversation, Turn, follow
from medical_qwen.pages.language import Text, Words
from medical_qwen.pages.passages import passages
from medical_qwen.pages.votes import append_rows, export, preference_rows, vote
from medical_qwen.records.messages import stripped

LONGEST_ANSWER = 2048  # tokens, where the model's context allows it
PLACEHOLDER = Text(
    "描述您的问题；Enter 发送，Shift+Enter 换行", "Your question; Enter sends, Shift+Enter breaks the line"
)
TOO_LONG = Text("问题太长：{:,} 个字符，最多 {:,} 个", "The question is too long: {:,} characters, at most {:,}")
KEPT = Text("已保存 {} 对偏好", "Preference pairs saved: {}")
ALONE = Text(
    "已记下。组成偏好对还需要同一问题的另一个回答：请“重试”，或打开对比",
    "Noted. A preference pair needs another answer to the same question: retry, or compare",
)
THUMBS = Text(
    "点赞、点踩会把这个问题、它的回答和之前的对话存到服务器的 `{}`，用于训练；其他内容不保存。",
    "Thumbs keep the question, its answers and the turns before in `{}` on the server, for training. Nothing else is "
    "kept.",
)
NO_ANSWER = Text("还没有可以导出的回答", "There is no answer to export yet")
WRITTEN = Text("{} 个词元 · {:.1f} 秒", "{} tokens · {:.1f} s")
ENDS = {
    "stop": Text("", ""),
    "length": Text(" · 已到最大长度", " · cut at the longest length"),
    "cancelled": Text(" · 已停止", " · stopped"),
}
TRUNCATED = Text(" · 对话太长，最早的部分未读", " · too long for the model: the oldest part was left out")
DOWNLOAD = """text => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = `conversation-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json`;
  link.click();
}"""


class Chat:
    """Builds the chat where it is made, inside of a page; `connect` gives it life.

    Args:
        engine: who answers (`medical_qwen.generation`).
        base: answers beside `engine` when the user compares; None: there is nothing to compare.
        network: listens along, its findings are put before the model; None: nobody does.
        preference_file: where thumbs leave rows for `dpo_training.py`.
        examples: questions to begin with.
    """

    def __init__(
        self,
        words: Words,
        language: Any,
        engine: Any,
        base: Any | None,
        preference_file: str | Path,
        greeting: Text,
        examples: list[Text],
        network: Network | None = None,
    ) -> None:
        import gradio as gr

        self.engine, self.base, self.preference_file, self.network = engine, base, preference_file, network
        self.language, self.state = language, gr.State(Conversation())
        look = {"min_width": 280, "height": "calc(100dvh - 276px)", "min_height": 340, "buttons": ["copy"]}
        with gr.Row(elem_id="chats"):
            self.bot = words(
                gr.Chatbot,
                label=Text("微调后的模型", "The fine-tuned model"),
                show_label=False,
                placeholder=greeting,
                examples=[{"text": example} for example in examples],
                editable="user",
                elem_id="chat",
                **look,
            )
            label = Text("基座模型", "The base model")
            self.other = words(gr.Chatbot, label=label, visible=False, elem_id="other", **look)
        self.box = words(gr.Textbox, placeholder=PLACEHOLDER, show_label=False, max_lines=8, submit_btn=True,
                         autofocus=True, elem_id="box")  # fmt: skip
        self.status = gr.Markdown(elem_id="status")
        self.aside = gr.HTML(elem_id="aside")  # findings of the network, passages of the documents

    def settings(self, words: Words) -> None:
        """What the model is told, how it writes, and what can be taken away."""
        import gradio as gr

        longest = min(LONGEST_ANSWER, (self.engine.context_length or LONGEST_ANSWER) // 2)

        system = Text("系统提示（可留空）", "System prompt (may stay empty)")
        self.system = words(gr.Textbox, label=system, lines=2, max_lines=6, elem_id="system")
        self.temperature = words(gr.Slider, 0, 1.5, 0.7, step=0.1, elem_id="temperature",
                                 label=Text("随机性", "Temperature"),
                                 info=Text("0：总取最可能的词", "0: always the likeliest word"))  # fmt: skip
        self.top_p = words(gr.Slider, 0.1, 1, 0.9, step=0.05, label=Text("核采样 top-p", "Nucleus (top-p)"))
        self.longest = words(gr.Slider, 16, longest, min(512, longest), step=16, elem_id="longest",
                             label=Text("最长回答（词元）", "Longest answer (tokens)"))  # fmt: skip
        self.penalty = words(gr.Slider, 1, 1.5, 1, step=0.05, label=Text("重复惩罚", "Repetition penalty"))
        self.compare = words(gr.Checkbox, label=Text("与基座模型对比", "Compare with the base model"),
                             visible=self.base is not None, elem_id="compare")  # fmt: skip
        with gr.Row():
            self.export = words(gr.Button, value=Text("导出对话", "Export"), size="sm", min_width=90, elem_id="export")
            self.clear = words(gr.Button, value=Text("新对话", "New chat"), size="sm", min_width=90, elem_id="clear")
        file = html.escape(str(self.preference_file))
        words(gr.Markdown, value=Text(*(text.format(file) for text in THUMBS)), elem_id="kept")

    def connect(self) -> None:
        """Let questions, buttons and thumbs do what they say."""
        import gradio as gr

        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # What gr.Info and gr.Warning say reaches a browser through the queue alone; without it it goes to the log.
        spoken = quick | {"queue": True, "concurrency_limit": None}
        drawn = [self.state, self.bot, self.other, self.box, self.status, self.aside]

        def edit(conversation: Conversation, language: str, event: gr.EditData) -> tuple:
            return self.ask(event.value, conversation, language, conversation.place(event.index))

        def pick(conversation: Conversation, language: str, event: gr.SelectData) -> tuple:
            return self.ask(event.value["text"], conversation, language)

        def judge(conversation: Conversation, language: str, event: gr.LikeData) -> None:
            self.judge(conversation, language, event.index, event.liked, other=False)

        def judge_other(conversation: Conversation, language: str, event: gr.LikeData) -> None:
            self.judge(conversation, language, event.index, event.liked, other=True)

        who = [self.state, self.language]
        settings = [self.system, self.temperature, self.top_p, self.longest, self.penalty, self.compare]
        for asked in (
            self.box.submit(self.ask, [self.box, *who], drawn, **spoken),
            self.bot.example_select(pick, who, drawn, **spoken),
            self.bot.retry(self.ask_again, who, drawn, **spoken),
            self.bot.edit(edit, who, drawn, **spoken),
        ):
            asked.success(
                self.answer, [*who, *settings], [self.bot, self.other, self.status, self.aside],
                concurrency_id="answers", show_progress="minimal", api_visibility="private",
                trigger_mode="multiple",  # a question that comes while an answer is written ends that one
            ).then(self.rest, self.state, self.box, trigger_mode="multiple", **quick)  # fmt: skip
        self.box.stop(self.stop, self.state, self.box, **quick)
        self.bot.undo(self.undo, who, drawn, **quick)
        gr.on([self.clear.click, self.bot.clear], self.forget, self.state, drawn, **quick)
        self.bot.like(judge, who, None, **spoken)
        self.other.like(judge_other, who, None, **spoken)
        self.compare.change(
            lambda on: (gr.update(show_label=on), gr.update(visible=on)), self.compare, [self.bot, self.other], **quick
        )
        text = gr.Textbox(visible=False)
        self.export.click(self.exported, who, text, **quick).success(None, text, None, js=DOWNLOAD, **quick)

    def ask(self, question: str, conversation: Conversation, language: str, place: int | None = None) -> tuple:
        """A new question, which ends the answer that is being written; nothing happens without text.

        Args:
            place: number of the turn that it replaces, with all later ones.
        """
        import gradio as gr

        question = stripped(question or "")
        if len(question) > LONGEST_QUESTION:
            gr.Warning(TOO_LONG.said(language).format(len(question), LONGEST_QUESTION), duration=None)
        if not 0 < len(question) <= LONGEST_QUESTION:
            return conversation, *self._drawn(conversation, language), *[gr.skip()] * 3
        conversation.turns = [*conversation.turns[:place], Turn(question)]
        return self._begin(conversation, language)

    def ask_again(self, conversation: Conversation, language: str) -> tuple:
        """The last question once more."""
        import gradio as gr

        return self._begin(conversation, language) if conversation.turns else (conversation, *[gr.skip()] * 5)

    def _begin(self, conversation: Conversation, language: str) -> tuple:
        import gradio as gr

        if self.network:
            *_, before, now = [None, *conversation.listen(self.network).states]
            for flag in now.urgent:
                if before is None or flag not in before.urgent:
                    gr.Warning(html.escape(flag.message(language)), duration=None)
        conversation.running = object()
        conversation.turns[-1].answer = conversation.turns[-1].other = ""
        box = gr.update(value="", submit_btn=False, stop_btn=True)
        return conversation, *self._drawn(conversation, language), box, "", self.beside(conversation)

    def _drawn(self, conversation: Conversation, language: str) -> tuple:
        return conversation.shown(language), conversation.shown(language, other=True)

    def answer(
        self,
        conversation: Conversation,
        language: str,
        system: str,
        temperature: float,
        top_p: float,
        longest: int,
        penalty: float,
        compare: bool,
    ) -> Iterator[tuple]:
        """Write the answer to the last question. Ends at once where it was stopped while it stood in line."""
        import gradio as gr

        if conversation.running is None:
            yield (gr.skip(),) * 4
            return
        mine = conversation.running = object()  # of two that stood in line the later one takes over
        turn, number, began = conversation.turns[-1], len(conversation.turns) - 1, time.monotonic()
        if turn.system != (system := stripped(system or "")):
            turn.system, turn.votes = system, {}
        findings = conversation.listen(self.network).evidence() if self.network else ""
        messages = with_documents(conversation.prompt(number), None, findings)
        request = Request(messages, seed=random.randrange(2**31))
        engines = [self.engine, self.base] if compare and self.base else [self.engine]
        try:
            sampling = Sampling(int(longest), temperature, top_p, penalty)
            streams = [engine.stream(request, sampling) for engine in engines]
            for texts in follow(streams, lambda: conversation.running is mine):
                if conversation.running in (mine, None):  # a newer answer may be to the same question
                    turn.answer, turn.other = [*texts, ""][:2]
                yield *self._drawn(conversation, language), "", gr.skip()
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        finally:
            newer = conversation.running not in (mine, None)
            if conversation.running is mine:
                conversation.running = None
        if newer:
            return
        turn.votes = {text: None for text in (turn.answer, turn.other) if text} | turn.votes
        told = note(streams[0].answer, time.monotonic() - began, language)
        yield *self._drawn(conversation, language), told, self.beside(conversation, streams[0])

    def beside(self, conversation: Conversation, stream: Any = None) -> str:
        """HTML below the chat: the passages of an answer from documents, and what the network makes of the talk."""
        found = passages(stream) if getattr(stream, "found", None) else ""
        return found + (panel(conversation.listen(self.network)) if self.network and conversation.turns else "")

    def rest(self, conversation: Conversation) -> dict:
        """The question box when no answer is being written."""
        import gradio as gr

        return gr.skip() if conversation.running else gr.update(submit_btn=True, stop_btn=False)

    def stop(self, conversation: Conversation) -> dict:
        """End the answer at the next token; what is there stays."""
        conversation.running = None
        return self.rest(conversation)

    def undo(self, conversation: Conversation, language: str) -> tuple:
        """Take the last question back into the box."""
        import gradio as gr

        conversation.running = None
        question = conversation.turns.pop().question if conversation.turns else ""
        return (
            conversation,
            *self._drawn(conversation, language),
            gr.update(value=question),
            "",
            self.beside(conversation),
        )

    def forget(self, conversation: Conversation) -> tuple:
        """Begin a new conversation."""
        conversation.turns, conversation.running = [], None
        return conversation, [], [], self.rest(conversation), "", ""

    def judge(
        self, conversation: Conversation, language: str, index: int, liked: bool | str, other: bool = False
    ) -> None:
        """A thumb up, down or (an empty string) taken back; pairs that it makes are saved."""
        import gradio as gr

        number = conversation.place(index, other)
        turn = conversation.turns[number]
        pairs = vote(turn, turn.other if other else turn.answer, liked if isinstance(liked, bool) else None)
        append_rows(self.preference_file, preference_rows(conversation.prompt(number), pairs))
        if isinstance(liked, bool):
            gr.Info(KEPT.said(language).format(len(pairs)) if pairs else ALONE.said(language))

    def exported(self, conversation: Conversation, language: str) -> str:
        """The conversation as a training record."""
        import gradio as gr

        if not any(turn.answer for turn in conversation.turns):
            raise gr.Error(NO_ANSWER.said(language), print_exception=False)
        return export(conversation)


def note(answer: Answer, seconds: float, language: str) -> str:
    """One line on an answer: tokens, time, and what was cut."""
    end = ENDS.get(answer.finish_reason, ENDS["stop"])  # servers know more reasons
    told = WRITTEN.said(language).format(answer.completion_tokens, seconds) + end.said(language)
    return told + TRUNCATED.said(language) * answer.truncated
