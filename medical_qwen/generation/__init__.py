"""Who answers? Requests in, answers out, all at once or piece by piece; a file of them as a job that survives a kill.

`engine` is the door, `decoding` one step of a batch, `text` how tokens become text, `job` the file job.
"""

from medical_qwen.generation.decoding import Answer, Sampling
from medical_qwen.generation.engine import Generator, Request, Stream, plan_batches, summarize
from medical_qwen.generation.job import Journal, answer_file, describe_files, read_questions
from medical_qwen.generation.text import split_thinking

__all__ = [
    "Answer",
    "Generator",
    "Journal",
    "Request",
    "Sampling",
    "Stream",
    "answer_file",
    "describe_files",
    "plan_batches",
    "read_questions",
    "split_thinking",
    "summarize",
]
