"""A page in two languages: every text is given as a pair, a switch changes all of them at once, without a reload."""

from collections.abc import Callable
from typing import Any, NamedTuple

LANGUAGES = ("zh", "en")
_IN_DOCUMENT = "choice => { document.documentElement.lang = choice; return [choice]; }"


class Text(NamedTuple):
    """The same thing said in Chinese and in English."""

    zh: str
    en: str

    def said(self, language: str) -> str:
        return self.en if language == "en" else self.zh


class Words:
    """Makes a page's components in Chinese and remembers what they say in English."""

    def __init__(self) -> None:
        self._told: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, kind: Callable[..., Any], *values: Any, **options: Any) -> Any:
        """`kind(*values, **options)`; named options that hold a `Text` (also inside of a list) follow the switch."""
        component = kind(*values, **{name: said(option, "zh") for name, option in options.items()})
        spoken = {name: option for name, option in options.items() if said(option, "zh") != said(option, "en")}
        if spoken:
            self._told.append((component, spoken))
        return component

    def switch(self) -> Any:
        """The visible control; its value is `zh` or `en`. The browser remembers the choice, and nothing else."""
        import gradio as gr

        choices = [("中文", "zh"), ("English", "en")]
        return gr.Radio(choices, value="zh", show_label=False, container=False, elem_id="language", min_width=150)

    def connect(self, page: Any, switch: Any) -> None:
        """Let the switch work on all the components made so far."""
        import gradio as gr

        kept = gr.BrowserState("zh", storage_key="medical_qwen_language", secret="no secret")
        components = [component for component, _ in self._told]

        def speak(language: str) -> list[dict]:
            told = [{name: said(option, language) for name, option in spoken.items()} for _, spoken in self._told]
            return [language, *(gr.update(**options) for options in told)]

        page.load(lambda language: language, kept, switch, show_progress="hidden", api_visibility="private")
        switch.change(speak, switch, [kept, *components], js=_IN_DOCUMENT, show_progress="hidden", queue=False,
                      api_visibility="private")  # fmt: skip


def said(option: Any, language: str) -> Any:
    """An option in one language."""
    if isinstance(option, Text):
        return option.said(language)
    if isinstance(option, list):
        return [said(item, language) for item in option]
    if isinstance(option, dict):
        return {name: said(item, language) for name, item in option.items()}
    return option
