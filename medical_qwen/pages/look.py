"""The frame of a page: colours and type, title, notice, and the server that shows it on this machine alone."""

import argparse
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medical_qwen.pages.language import Text, Words

NOTICE = Text(
    "回答由模型生成，可能有误，<b>不是医疗建议</b>，不能代替医生。紧急情况请立即拨打 120。",
    "Answers come from a model and may be wrong. They are <b>not medical advice</b> and replace no doctor. "
    "In an emergency call for help at once.",
)
TEAL = ("#f0f7f6", "#dcedea", "#b9dbd6", "#8cc2bb", "#5aa39b", "#36867e", "#236b65", "#1c5752", "#184744", "#123634",
        "#0a2221")  # fmt: skip
PAPER = ("#fbfaf7", "#f5f3ee", "#e8e5dd", "#d5d1c7", "#a8a39a", "#7b766e", "#5b5751", "#423f3a", "#2b2926", "#1c1b19",
         "#121110")  # fmt: skip
AT_A_TIME = 8  # answers that are written at once; further questions wait in line
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
# A model's answer or a document must not be able to make the browser fetch something from elsewhere.
HEAD = """<meta http-equiv="Content-Security-Policy" content="img-src 'self' data: blob:; media-src 'self' blob:">"""
MARK = """<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9"/>
<path d="M6 17h5l3-8 4 15 3-7h5" fill="none" stroke-width="2.4" stroke-linecap="round"/></svg>"""


def add_page_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say who can reach the page, and where it keeps what thumbs say."""
    add = parser.add_argument
    add("--server_name", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    add("--server_port", type=int, help="default: the first free port from 7860 on")
    add("--share", action="store_true", help="make a public link through Gradio's servers: anybody can use the page")
    add("--auth", help="who may enter: user:password, several separated by commas")
    add(
        "--preference_file",
        default="outputs/preferences/votes.jsonl",
        help="thumbs add preference pairs for dpo_training.py here (default: %(default)s)",
    )


def check_page_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop with a message before a model loads. `args.auth` becomes a list of (user, password)."""
    args.auth = [tuple(pair.split(":", 1)) for pair in (args.auth or "").split(",") if pair] or None
    if not all(len(pair) == 2 and all(pair) for pair in args.auth or []):
        parser.error("--auth: expected user:password, several separated by commas")
    if args.server_port is None:
        return
    if not 0 < args.server_port < 65536:
        parser.error(f"--server_port: expected 1 to 65535, got {args.server_port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.server_name, args.server_port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                parser.error(f"--server_name {args.server_name}: {error.strerror}")
            parser.error(f"--server_port {args.server_port} is in use: choose another, or leave it out")


@contextmanager
def open_page(title: Text, about: Text, words: Words) -> Iterator[tuple[Any, Any]]:
    """The frame; inside of it the page puts its own components. Yields the page and its language switch."""
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install gradio==6.31.0") from error
    with gr.Blocks(title=title.zh, fill_width=True, analytics_enabled=False) as page:
        with gr.Row(elem_id="top"):
            words(gr.HTML, value=Text(*(_heading(*pair) for pair in zip(title, about, strict=True))), elem_id="title")
            switch = words.switch()
        words(gr.HTML, value=NOTICE, elem_id="notice")
        yield page, switch
        words.connect(page, switch)


def _heading(title: str, about: str) -> str:
    return f"{MARK}<div><h1>{title}</h1><p>{about}</p></div>"


def theme() -> Any:
    """Deep teal on warm paper, large type, few lines."""
    import gradio as gr

    primary, neutral = gr.themes.Color(*TEAL, name="teal"), gr.themes.Color(*PAPER, name="paper")
    base = gr.themes.Base(
        primary_hue=primary, secondary_hue=primary, neutral_hue=neutral, radius_size="lg", font=list(FONTS)
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_800",
        body_text_color_subdued="*neutral_500",
        block_background_fill="white",
        block_border_color="*neutral_200",
        block_shadow="none",
        block_title_text_weight="500",
        input_background_fill="white",
        input_border_color="*neutral_200",
        input_border_width="1px",
        input_border_color_focus="*primary_500",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*primary_50",
        button_secondary_border_color="*neutral_300",
        button_secondary_text_color="*primary_700",
        button_border_width="1px",
        slider_color="*primary_600",
        chatbot_text_size="16px",
    )


def serve(page: Any, args: argparse.Namespace) -> None:
    """Show the page until Ctrl-C.

    Nothing is sent to anybody: no analytics, no fonts from elsewhere, no history kept in the browser.
    """
    page.queue(default_concurrency_limit=AT_A_TIME)
    page.launch(
        server_name=args.server_name,
        server_port=args.server_port,
        share=args.share,
        auth=args.auth,
        theme=theme(),
        css_paths=Path(__file__).with_name("look.css"),
        head=HEAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size="100mb",
    )
