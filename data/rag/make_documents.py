"""The documents of the retrieval demo that are not written by hand: pdf, docx, xlsx, md, html, txt.

    python data/rag/make_documents.py

writes them to data/rag/documents, where first_aid.csv and faq.jsonl lie already. The articles are those of
data/pretrain, the table of laboratory values stands below. The PDF names a font that every reader brings along, so it
embeds none and stays small. Needs reportlab (requirements-dev.txt).
"""

import argparse
import html
import re
import zipfile
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARTICLES = HERE.parent / "pretrain"
NOTICE = "健康科普材料，仅供参考，不能代替医生的诊断和治疗。"
WRITTEN = datetime(2026, 1, 1)  # one date for all files: the same code gives the same files

LABORATORY = {
    "血常规": [
        ("白细胞计数", "成人", "3.5～9.5", "×10⁹/L", "升高多见于感染、炎症和应激；明显减少要防感染"),
        ("血红蛋白", "成年男性", "130～175", "g/L", "低于参考范围下限提示贫血"),
        ("血红蛋白", "成年女性", "115～150", "g/L", "孕期因血液稀释可以偏低"),
        ("红细胞计数", "成年男性", "4.3～5.8", "×10¹²/L", ""),
        ("红细胞计数", "成年女性", "3.8～5.1", "×10¹²/L", ""),
        ("血小板计数", "成人", "125～350", "×10⁹/L", "明显减少时容易出血，不要剧烈运动"),
        ("中性粒细胞百分数", "成人", "40～75", "%", "细菌感染时常升高"),
        ("淋巴细胞百分数", "成人", "20～50", "%", "病毒感染时常升高"),
    ],
    "生化": [
        ("丙氨酸氨基转移酶 ALT", "成年男性", "9～50", "U/L", "升高提示肝细胞受损，饮酒和药物是常见原因"),
        ("丙氨酸氨基转移酶 ALT", "成年女性", "7～40", "U/L", ""),
        ("白蛋白", "成人", "40～55", "g/L", "降低见于营养不良、肝病和肾病"),
        ("肌酐", "男性 20～59 岁", "57～97", "μmol/L", "要结合年龄和性别估算肾小球滤过率"),
        ("肌酐", "女性 20～59 岁", "41～73", "μmol/L", ""),
        ("血钾", "成人", "3.5～5.3", "mmol/L", "过高或过低都可引起心律失常"),
        ("血钠", "成人", "137～147", "mmol/L", ""),
        ("血钙（总钙）", "成人", "2.11～2.52", "mmol/L", "白蛋白低时总钙会偏低"),
        ("空腹血糖", "成人", "3.9～6.1", "mmol/L", "两次达到 7.0 可诊断糖尿病"),
    ],
}
LABORATORY_HEAD = ("项目", "人群", "参考范围", "单位", "说明")


def articles(name: str, *titles: str) -> list[tuple[str, list[str]]]:
    """(title, paragraphs) of the named articles of a file of data/pretrain."""
    found = {}
    for article in (ARTICLES / f"{name}.txt").read_text(encoding="utf-8").split("\n\n"):
        title, *paragraphs = article.strip().split("\n")
        found[title] = paragraphs
    return [(title, found[title]) for title in titles]


def write_pdf(path: Path, title: str, chapters: list[tuple[str, list[str]]]) -> None:
    """A title page, then each chapter on a page of its own."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    body = ParagraphStyle("body", fontName="STSong-Light", fontSize=11, leading=19, spaceAfter=6, wordWrap="CJK")
    head = ParagraphStyle("head", parent=body, fontSize=16, leading=26, spaceAfter=10)
    story = [Paragraph(title, head), Paragraph(NOTICE, body)]
    for chapter, paragraphs in chapters:
        story += [PageBreak(), Paragraph(chapter, head), *(Paragraph(html.escape(text), body) for text in paragraphs)]
    SimpleDocTemplate(str(path), pagesize=A4, title=title, invariant=1).build(story)


def write_docx(path: Path, title: str, chapters: list[tuple[str, list[str]]]) -> None:
    import docx

    document = docx.Document()
    document.core_properties.created = document.core_properties.modified = WRITTEN
    document.add_heading(title, 0)
    document.add_paragraph(NOTICE)
    for chapter, paragraphs in chapters:
        document.add_heading(chapter, 1)
        for text in paragraphs:
            document.add_paragraph(text)
    document.save(path)
    same_dates(path)


def write_xlsx(path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    book.properties.created = book.properties.modified = WRITTEN
    for name, rows in LABORATORY.items():
        sheet = book.create_sheet(name)
        for row in (LABORATORY_HEAD, *rows):
            sheet.append(row)
    book.save(path)
    same_dates(path)


def same_dates(path: Path) -> None:
    """Pack a zip anew, with one date for every member and for the document's last change."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stamp = rb"(<dcterms:modified[^>]*>)[^<]*"
    members["docProps/core.xml"] = re.sub(stamp, rb"\g<1>2026-01-01T00:00:00Z", members["docProps/core.xml"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, WRITTEN.timetuple()[:6]), data, zipfile.ZIP_DEFLATED)


def write_texts(folder: Path) -> None:
    """Markdown, HTML, plain text."""
    chapters = articles("pediatrics", "儿童发热的家庭处理", "热性惊厥", "儿童急性腹泻与轮状病毒")
    parts = [f"## {title}\n\n" + "\n\n".join(paragraphs) for title, paragraphs in chapters]
    (folder / "children.md").write_text("\n\n".join(["# 儿童常见病", NOTICE, *parts]) + "\n", encoding="utf-8")

    chapters = articles("pharmacology_safety", "非甾体抗炎药与对乙酰氨基酚", "药物相互作用与常见误区", "老年人用药")
    parts = [
        f"<h2>{title}</h2>\n" + "\n".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
        for title, paragraphs in chapters
    ]
    page = '<!doctype html>\n<html lang="zh">\n<head><meta charset="utf-8"><title>用药安全</title></head>\n<body>\n'
    page += "\n".join(["<h1>用药安全</h1>", f"<p>{NOTICE}</p>", *parts]) + "\n</body>\n</html>\n"
    (folder / "medicines.html").write_text(page, encoding="utf-8")

    [(title, paragraphs)] = articles("english_primary_care", "Safe use of common painkillers")
    (folder / "painkillers.txt").write_text("\n\n".join([title, *paragraphs]) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, default=HERE / "documents", help="(default: %(default)s)")
    folder = parser.parse_args(argv).output_dir
    folder.mkdir(parents=True, exist_ok=True)
    heart = articles("cardiology", "高血压的诊断与长期管理", "血脂异常与他汀治疗", "心房颤动与卒中预防")
    write_pdf(folder / "hypertension.pdf", "高血压与心血管健康手册", heart)
    sugar = articles("endocrinology", "2 型糖尿病", "低血糖的识别与处理", "1 型糖尿病与糖尿病酮症酸中毒")
    write_docx(folder / "diabetes.docx", "糖尿病患者手册", sugar)
    write_xlsx(folder / "laboratory.xlsx")
    write_texts(folder)
    print(f"{folder}: {len(list(folder.iterdir()))} documents")


if __name__ == "__main__":
    main()
