"""Who answers? Requests in, answers out, all at once or piece by piece; a file of them as a job that survives a kill."""

from medical_qwen.generation.decoding import Answer, Sampling
from medical_qwen.generation.engine import Generator, Request, Stream, plan_batches, summarize
from medical_qwen.generation.text import split_thinking

__all__ = ["Answer", "Generator", "Request", "Sampling", "Stream", "plan_batches", "split_thinking", "summarize"]
