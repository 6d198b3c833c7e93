"""Meaning as vectors: the embedding model that finds passages, and the cross-encoder that may sort what was found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROBE = "高血压患者应当低盐饮食，按时服药。Take 5 mg once a day."  # its vector tells one model from another
SAME = 0.999  # cosine of the probe's vectors under one model on two devices or in two precisions


def library() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError(
            "--embedding_model and --rerank_model need sentence-transformers: pip install sentence-transformers==6.2.0"
        ) from error
    return sentence_transformers


def precision(device: str | None) -> dict:
    """Settings for loading: half precision, in which many are stored, is slower than full precision on a CPU."""
    import torch

    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    return {"dtype": torch.float32} if on_cpu else {}


def spelling(tokenizer: Any) -> Callable[[str], str]:
    """`str.lower` for a vocabulary without capitals, such as that of bge-small-zh, to which "CT" is unknown."""
    return str.lower if tokenizer.unk_token_id in tokenizer("CT", add_special_tokens=False)["input_ids"] else str


class Encoder:
    """An embedding model in the format of sentence-transformers."""

    def __init__(self, model: str | Path, device: str | None = None, batch_size: int = 32) -> None:
        self.name, self.batch_size = str(model), batch_size
        self.model = library().SentenceTransformer(self.name, device=device, model_kwargs=precision(device))
        self.spell = spelling(self.model.tokenizer)
        self.dimension: int = self.model.get_embedding_dimension()
        self.query_prompt = "query" if "query" in self.model.prompts else None

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text, without the marks at its ends."""
        found = self.model.tokenizer([self.spell(text) for text in texts], add_special_tokens=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    @property
    def longest(self) -> int:
        """Tokens that the model reads of a passage; what is longer is cut off."""
        return self.model.get_max_seq_length() - self.model.tokenizer.num_special_tokens_to_add()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of length 1, float32, one row a passage."""
        return self._encode(texts, None)

    def encode_query(self, query: str) -> np.ndarray:
        """The vector of a question, with the model's own instruction where it has one."""
        return self._encode([query], self.query_prompt)[0]

    def _encode(self, texts: list[str], prompt: str | None) -> np.ndarray:
        vectors = self.model.encode(
            [self.spell(text) for text in texts],
            prompt_name=prompt,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def described(self) -> dict:
        """What an index keeps, to know its model again."""
        probe = self._encode([PROBE], None)[0]
        return {
            "name": Path(self.name).name,
            "dimension": self.dimension,
            "probe": [round(float(x), 5) for x in probe],
        }

    def check(self, described: dict) -> None:
        """ValueError unless the index was built with this model's weights."""
        mine = self.described()
        if described["dimension"] != self.dimension or np.dot(described["probe"], mine["probe"]) < SAME:
            raise ValueError(
                f"--embedding_model {self.name}: the index was built with {described['name']} "
                f"({described['dimension']} dimensions), whose vectors differ; give that model, or build another index"
            )


class Reranker:
    """A cross-encoder that reads the question and a passage together: slower and better than either search."""

    def __init__(self, model: str | Path, device: str | None = None, batch_size: int = 16) -> None:
        self.batch_size = batch_size
        self.model = library().CrossEncoder(str(model), device=device, model_kwargs=precision(device))
        self.spell = spelling(self.model.tokenizer)

    def score(self, query: str, texts: list[str]) -> list[float]:
        pairs = [(self.spell(query), self.spell(text)) for text in texts]
        return [float(x) for x in self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)]
