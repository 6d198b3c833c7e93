"""Which passages of the documents speak of a question? Read files, cut them into passages, index, search.

`document` and `readers` turn a file into text with places, `chunks` cuts passages, `words` and `encoder` are the two
ways to compare texts, `store` is the index on disk, `index` the door, `search` what happens behind it.
"""

from medical_qwen.retrieval.chunks import Passage
from medical_qwen.retrieval.document import Document, Section, Unreadable
from medical_qwen.retrieval.encoder import Encoder, Reranker
from medical_qwen.retrieval.index import Index, Update
from medical_qwen.retrieval.readers import read_document
from medical_qwen.retrieval.search import Hit

__all__ = [
    "Document",
    "Encoder",
    "Hit",
    "Index",
    "Passage",
    "Reranker",
    "Section",
    "Unreadable",
    "Update",
    "read_document",
]
