"""The passages of an answer as the page shows them: cited ones first to see, the question's words marked."""

import html
import re
from typing import Any

from medical_qwen.evidence import label
from medical_qwen.retrieval.words import words


def passages(reply: Any) -> str:
    """HTML of what a `retrieval.Reply` was written from; passage n is what `[n]` in the answer cites."""
    cards = []
    for number, hit in enumerate(reply.found.hits, 1):
        cited = "cited" if reply.found.request and number in reply.citations.cited else "other"
        place = html.escape(label(vars(hit.passage)))
        text = marked(hit.passage.text, reply.found.query)
        cards.append(
            f'<details class="passage {cited}" {"open" if cited == "cited" else ""}><summary><b>[{number}]</b> {place}'
            f"</summary><p>{text}</p></details>"
        )
    return f'<div id="passages">{"".join(cards)}</div>'


def marked(text: str, query: str) -> str:
    """The text as HTML with the words of the query marked; single letters are none."""
    wanted = sorted({word for word in words(query) if len(word) > 1}, key=len, reverse=True)
    if not wanted:
        return html.escape(text)
    parts = re.split(f"({'|'.join(map(re.escape, wanted))})", text, flags=re.IGNORECASE)
    return "".join(
        f"<mark>{html.escape(part)}</mark>" if place % 2 else html.escape(part) for place, part in enumerate(parts)
    )
