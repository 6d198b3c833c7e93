"""Score answers: BLEU-1..4 and ROUGE-1/2/L by characters and by words, exam accuracy, calculation accuracy.

    python evaluate_metrics.py --data_file answers.jsonl --output_file scores.json --per_row_file rows.jsonl
    python evaluate_metrics.py --data_file base.jsonl sft.jsonl --names base sft     # side by side, with paired differences
    python evaluate_metrics.py --base_model outputs-sft --data_file data/eval/heldout_qa.jsonl      # answers them first
    python evaluate_metrics.py --task exam --data_file exam_answers.jsonl

One JSON object a line, as inference.py writes them. Task `qa`: `prediction` and `reference` (or `output`, `answer`, `label`; a list
holds several references). `exam`: `prediction`, `answer` (letters), `options`. `calculation`: `prediction`, `answer`, `unit`, `tolerance`.
How the scores are defined stands in `medical_qwen/metrics.py`, how answers are read in `medical_qwen/answers.py`. All numbers are 0..100.
Intervals are 95 %: bootstrap over rows, Wilson for accuracies.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medical_qwen.answers import judge_choice, judge_number, task_prompt
from medical_qwen.metrics import SCORES, TOKENIZERS, clean, interval, resamples, score_texts, wilson_interval

REFERENCE_FIELDS = ("reference", "output", "answer", "label")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """A question with its gold answer, and what a system said."""

    where: str  # file:line
    fields: dict
    prediction: str
    references: list[str]
