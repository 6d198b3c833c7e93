"""What is in the files: readers, format detection, conversion to the standard forms, and a report."""

from .formats import FORMATS
from .forms import FORMS, render_choice
from .problems import BadRecord, RecordError
from .reading import Read, read_records, stream
from .report import Report
from .splits import Splits, load_splits

__all__ = [
    "FORMATS",
    "FORMS",
    "BadRecord",
    "Read",
    "RecordError",
    "Report",
    "Splits",
    "load_splits",
    "read_records",
    "render_choice",
    "stream",
]
