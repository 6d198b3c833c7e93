"""Which token ids, and which of them are learned? The one place where messages become ids, a loss mask, a prompt.

`Renderer` serves training, generation and serving alike. `renderer` is the door; `messages` prepares what the chat
template reads, `layout` finds out where it puts the texts and where an answer begins and ends, `encoding` turns text
into ids that no text can forge, `rendered` is what comes out, `fitting` shortens what is too long, `loading` checks
the tokenizer.
"""

from .encoding import Encoder, Span
from .fitting import Truncation, TruncationReport
from .loading import check_tokenizer, set_template
from .rendered import Rendered
from .renderer import Pair, Renderer

__all__ = [
    "Encoder",
    "Pair",
    "Rendered",
    "Renderer",
    "Span",
    "Truncation",
    "TruncationReport",
    "check_tokenizer",
    "set_template",
]
