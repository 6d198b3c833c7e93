"""Which passages of the documents speak of a question? Read files, cut them into passages, index, search, answer.

`document` and `readers` turn a file into text with places, `chunks` cuts passages, `words` and `encoder` are the two
ways to compare texts, `store` is the index on disk, `index` the door, `search` what happens behind it. `library` is
the engine that answers from an index, `citations` checks what it cites.
"""

from medical_qwen.retrieval.chunks import Passage
from medical_qwen.retrieval.document import Document, Section, Unreadable
from medical_qwen.retrieval.encoder import Encoder, Reranker
from medical_qwen.retrieval.index import Index, Update
from medical_qwen.retrieval.library import Found, Library, Reply
from medical_qwen.retrieval.readers import read_document
from medical_qwen.retrieval.search import Hit

__all__ = [
    "Document",
    "Encoder",
    "Found",
    "Hit",
    "Index",
    "Library",
    "Passage",
    "Reply",
    "Reranker",
    "Section",
    "Unreadable",
    "Update",
    "read_document",
]
