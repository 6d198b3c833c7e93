"""The page of `chatpdf.py`: ask the documents, see which passages an answer was written from, add files."""

import html
import shutil
from pathlib import Path
from typing import Any

from medical_qwen.causal import Network
from medical_qwen.pages.chat import Chat
from medical_qwen.pages.language import Text, Words
from medical_qwen.pages.look import open_page
from medical_qwen.retrieval import Library

TITLE = Text("问资料", "Ask your documents")
ABOUT = Text("回答只依据资料，并注明出处", "Answers come from the documents, with their places")
GREETING = Text(
    "### 想在资料里查什么？\n回答里的 [1] 对应下方的资料片段，查询到的词已标出。资料里没有的，会直说没有。",
    "### What shall we look up?\n[1] in an answer is passage 1 below it, with the words of the question marked. What "
    "the documents do not say is called missing.",
)
ADD = Text(
    "添加资料：pdf、docx、md、txt、html、csv、xlsx、jsonl", "Add files: pdf, docx, md, txt, html, csv, xlsx, jsonl"
)
SHARED = Text(
    "添加的资料存在服务器上，所有使用者都能查到。", "What is added stays on the server, all users can find it."
)
HELD = Text("资料库：{} 个片段", "The library holds {} passages")
SKIPPED = Text("未读：{}（{}）", "Not read: {} ({})")


def documents_page(library: Library, folder: Path, preference_file: str, network: Network | None) -> Any:
    """The page; `folder` takes the files that users add."""
    words = Words()
    with open_page(TITLE, ABOUT, words) as (page, language):
        import gradio as gr

        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                chat = Chat(words, language, library, None, preference_file, GREETING, [], network)
            with gr.Column(scale=1, min_width=260):
                files = words(gr.File, label=ADD, file_count="multiple", height=120, elem_id="files")
                held = gr.Markdown(HELD.zh.format(len(library.index)), elem_id="held")
                words(gr.Markdown, value=SHARED, elem_id="kept")
                with words(gr.Accordion, label=Text("设置", "Settings"), open=False):
                    chat.settings(words)
        chat.connect()

        def add(paths: list[str], spoken: str) -> tuple:
            return None, added(library, folder, paths, spoken)

        files.upload(add, [files, language], [files, held], concurrency_limit=1, api_visibility="private")
    return page


def free_name(folder: Path, path: Path) -> Path:
    """Where a file goes: another user's one of the same name stays, beside it comes `name (2)`."""
    names = (path.name, *(f"{path.stem} ({number}){path.suffix}" for number in range(2, 1000)))
    places = (folder / name for name in names)
    return next(place for place in places if not place.exists() or place.read_bytes() == path.read_bytes())


def added(library: Library, folder: Path, paths: list[str], language: str) -> str:
    """Put files into the library; says what it holds now, and which files could not be read and why."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, paths):
        shutil.copyfile(path, free_name(folder, path))
    update = library.index.update([folder], progress=False)
    skipped = [SKIPPED.said(language).format(Path(name).name, problem) for name, problem in update.skipped]
    return "\n\n".join(map(html.escape, [HELD.said(language).format(len(library.index)), *skipped]))
