"""Check data files before training: which format they have, what is wrong where, what will be repaired.

    python tools/validate_data.py data/sft
    python tools/validate_data.py my.jsonl --form preference --show 2

Prints converted records if asked, a report, and the first 20 problems as `file:line: field: expected … got …`.
Exit code 1 if a record cannot be used.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.records import FORMATS, FORMS, Report, stream


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="File, or folder read recursively.")
    parser.add_argument("--form", default="conversation", choices=list(FORMS), help="What the stage trains on.")
    parser.add_argument(
        "--record_format", choices=list(FORMATS), help="Name of the format, when detection by columns is not wanted."
    )
    parser.add_argument(
        "--text_documents", default="file", choices=["file", "paragraph"], help="What a document is in .txt files."
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="Print this many converted records.")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print what is found; 0 if every record is good, else 1."""
    args = parse_args(argv)
    report = Report(args.form)
    options = {"record_format": args.record_format, "text_documents": args.text_documents, "report": report}
    problem = None
    try:
        for number, read in enumerate(stream(args.paths, args.form, **options)):
            if number < args.show:
                print(read.where, json.dumps(read.record, ensure_ascii=False, indent=2), sep="\n")
    except (ValueError, FileNotFoundError) as error:
        problem = error
    if report.files:
        print(report)
    print(problem or "all records are good")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
