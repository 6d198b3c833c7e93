"""Which token ids, and which of them are learned? The one place where messages become ids, a loss mask, a prompt.

`Renderer` serves training, generation and serving alike. `renderer` is the door; `layout` finds out where the chat
template puts the texts and where an answer begins and ends, `encoding` turns text into ids that no text can forge,
`fitting` shortens what is too long, `loading` sees to it that the tokenizer is in order.
"""

from .fitting import Truncation, TruncationReport
from .loading import check_tokenizer, set_template
from .renderer import Pair, Rendered, Renderer

__all__ = ["Pair", "Rendered", "Renderer", "Truncation", "TruncationReport", "check_tokenizer", "set_template"]
