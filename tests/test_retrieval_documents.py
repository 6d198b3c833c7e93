"""Documents: what each kind of file says and where, what cannot be read, and passages that stay in their place."""

import csv
import gzip
import io
import itertools
import json
import tracemalloc
import zipfile

import pytest

from medical_qwen.retrieval import Section, Unreadable, read_document, readers
from medical_qwen.retrieval.chunks import count_tokens, passages

SENTENCE = "高血压患者应当低盐饮食，规律运动，按时服药。"


def write_pdf(path, pages, password=None, picture=None):
    """Pages are lists of lines; None is a page with a picture and nothing else."""
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen.canvas import Canvas

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    canvas = Canvas(str(path), encrypt=StandardEncryption(password) if password else None)
    for lines in pages:
        if lines is None:
            canvas.drawImage(str(picture), 50, 300, 200, 200)
        else:
            canvas.setFont("STSong-Light", 12)
            for number, line in enumerate(lines):
                canvas.drawString(50, 780 - 20 * number, line)
        canvas.showPage()
    canvas.save()
    return path


def found(path, size=64, overlap=0):
    """The passages of a file; each is checked to be what its span says."""
    document = read_document(path)
    result = list(passages(document, path.name, size, overlap, count_tokens))
    assert all(document.text[passage.start : passage.end] == passage.text for passage in result)
    return result


def places(path):
    return [(passage.page, passage.heading, passage.text) for passage in found(path)]


def test_pdf_pages_headings_and_lines_that_go_on(tmp_path):
    path = write_pdf(
        tmp_path / "a.pdf",
        [
            ["第一章 高血压", "高血压患者应当低盐饮食，规律运动，每天食盐不", "超过五克，并且按时服药。"],
            ["第二页说的是随访。"],
        ],
    )
    assert places(path) == [
        (1, "第一章 高血压", "第一章 高血压\n高血压患者应当低盐饮食，规律运动，每天食盐不超过五克，并且按时服药。"),
        (2, "第一章 高血压", "第二页说的是随访。"),
    ]


def test_running_titles_leaders_and_comments_of_a_pdf(tmp_path):
    pages = [["高血压防治手册", f"第{page}次随访正常。", "# 不是标题", f"{page}"] for page in range(1, 9)]
    pages[0][1] = "第一章 总论 . . . . . . . . . 12"
    path = write_pdf(tmp_path / "a.pdf", pages)
    texts = [passage.text for passage in found(path)]
    assert texts[0] == "第一章 总论 … 12\n# 不是标题"
    assert texts[1:] == [f"第{page}次随访正常。\n# 不是标题" for page in range(2, 9)]
    assert [passage.heading for passage in found(path)][1:] == [found(path)[0].heading] * 7


def test_a_pdf_of_500_pages(tmp_path):
    path = write_pdf(tmp_path / "long.pdf", [[f"第{page}页的血压记录正常。"] for page in range(1, 501)])
    result = found(path)
    assert [passage.page for passage in result] == list(range(1, 501))
    assert result[342].text == "第343页的血压记录正常。"


def test_scanned_pages_are_named(tmp_path):
    from PIL import Image

    picture = tmp_path / "scan.png"
    Image.new("RGB", (8, 8), "white").save(picture)
    mixed = write_pdf(tmp_path / "mixed.pdf", [["第一页有文字。"], None, [], None], picture=picture)
    assert read_document(mixed).notes == ["2 scanned or a picture, without a text layer: run OCR first (page 2, 4)"]
    assert [passage.text for passage in found(mixed)] == ["第一页有文字。"]
    scanned = write_pdf(tmp_path / "scanned.pdf", [None], picture=picture)
    with pytest.raises(Unreadable, match=r"^1 scanned or a picture, without a text layer: .* \(page 1\)$"):
        read_document(scanned)


def test_pages_whose_fonts_name_no_characters_are_named(tmp_path):
    """A font that maps its letters to private signs, as some old typesetting does: no text, only shapes."""
    text = b"BT /F1 12 Tf 50 700 Td (AAAAAAAAAA) Tj ET"
    signs = b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <E041> endbfchar"
    (tmp_path / "a.pdf").write_bytes(
        b"%PDF-1.4\n1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj\n2 0 obj <</Type/Pages/Kids[3 0 R]/Count 1>> endobj\n"
        b"3 0 obj <</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 5 0 R/Resources<</Font<</F1 4 0 R>>>>>> "
        b"endobj\n4 0 obj <</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>> endobj\n"
        + b"".join(
            b"%d 0 obj <</Length %d>> stream\n%s\nendstream endobj\n" % (number, len(stream), stream)
            for number, stream in ((5, text), (6, signs))
        )
        + b"trailer <</Root 1 0 R>>\n%%EOF"
    )
    with pytest.raises(Unreadable, match=r"^1 in fonts that do not say which characters they show \(page 1\)$"):
        read_document(tmp_path / "a.pdf")


def test_docx_styles_tables_and_order(tmp_path):
    import docx

    document = docx.Document()
    document.add_heading("指南", 0)
    document.add_heading("用药", 1)
    document.add_paragraph(SENTENCE)
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "药名", "氨氯地平"
    document.add_heading("随访", 1)
    document.add_paragraph("每月一次。")
    document.save(tmp_path / "a.docx")
    assert places(tmp_path / "a.docx") == [
        (None, "用药", f"# 指南\n# 用药\n{SENTENCE}\n药名 | 氨氯地平"),
        (None, "随访", "# 随访\n每月一次。"),
    ]


def test_xlsx_rows_carry_their_column_names(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "药品"
    for row in (["药名", "剂量"], ["氨氯地平", "5 mg"], [None, None], ["二甲双胍", 0.5]):
        book.active.append(row)
    book.create_sheet("数字").append([1, 2])
    book.save(tmp_path / "a.xlsx")
    assert places(tmp_path / "a.xlsx") == [
        (None, "药品, row 2", "药名: 氨氯地平\n剂量: 5 mg"),
        (None, "药品, row 4", "药名: 二甲双胍\n剂量: 0.5"),
        (None, "数字, row 1", "1 | 2"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_csv_in_every_usual_encoding(tmp_path, encoding):
    stream = io.StringIO()
    csv.writer(stream).writerows([["问", "答"], ["能吃党参吗？", "可以，\n但要适量。"]])
    (tmp_path / "a.csv").write_bytes(stream.getvalue().encode(encoding))
    assert places(tmp_path / "a.csv") == [(None, "row 2", "问: 能吃党参吗？\n答: 可以，\n但要适量。")]


def test_a_packed_table_is_a_table(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress("问,答\n能吃党参吗？,可以\n".encode()))
    assert places(tmp_path / "a.csv.gz") == [(None, "row 2", "问: 能吃党参吗？\n答: 可以")]


def test_what_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST", 1000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * 100_000))
    with pytest.raises(Unreadable, match="unpacks to more than"):
        read_document(tmp_path / "bomb.txt.gz")


def test_a_sheet_of_blank_rows_takes_no_memory(tmp_path):
    book = pytest.importorskip("openpyxl").Workbook()
    book.active["A1"], book.active["B1"] = "药名", "剂量"
    book.active["A9000"], book.active["B9000"], book.active["XFD9000"] = "氨氯地平", "5 mg", "far away"
    book.save(tmp_path / "a.xlsx")
    tracemalloc.start()
    assert places(tmp_path / "a.xlsx") == [(None, "Sheet, row 9000", "药名: 氨氯地平\n剂量: 5 mg")]
    assert tracemalloc.get_traced_memory()[1] < 100 << 20  # 9,000 rows of 16,384 cells are 1.1 GB
    tracemalloc.stop()


def test_text_in_an_encoding_that_is_neither_utf_8_nor_gb18030(tmp_path):
    text = "高血壓患者應當低鹽飲食，規律運動，按時服藥，定期測量血壓，並且聽從醫師的建議。" * 4
    (tmp_path / "a.txt").write_bytes(text.encode("big5"))
    assert read_document(tmp_path / "a.txt").text.strip() == text


def test_json_lines_in_a_txt_are_rows(tmp_path):
    rows = [{"问": "感冒怎么办？", "答": ["多喝水", {"药": "对乙酰氨基酚"}], "空": None}, {"text": "只有正文。"}]
    (tmp_path / "a.txt").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    assert places(tmp_path / "a.txt") == [
        (None, "row 1", "问: 感冒怎么办？\n答: 多喝水; 药: 对乙酰氨基酚"),
        (None, "row 2", "只有正文。"),
    ]


def test_html_gives_what_a_reader_sees(tmp_path):
    (tmp_path / "a.html").write_bytes(
        "<!DOCTYPE html><html><head><title>x</title><script>var a=1</script></head><body><!-- 无 --><h1>糖尿病</h1>"
        "<p>多饮、\n   多尿。</p><h2>饮食</h2><ul><li>少吃糖</li><li>多吃菜</li></ul>"
        "<table><tr><td>药</td><td>量</td></tr></table></body></html>".encode("gb18030")
    )
    assert places(tmp_path / "a.html") == [
        (None, "糖尿病", "# 糖尿病\n\n多饮、 多尿。"),
        (None, "糖尿病 > 饮食", "## 饮食\n\n少吃糖\n\n多吃菜\n\n药 | 量"),
    ]


def test_headings_of_markdown_and_of_chinese_text(tmp_path):
    (tmp_path / "a.md").write_text(
        "# 甲\n正文一。\n```\n# 不是标题\n```\n## 乙\n正文二。\n# 丙\n【禁忌】过敏者禁用。\n【用法】\n口服。\n",
        "utf-8",
    )
    assert [(heading, text.splitlines()[-1]) for _, heading, text in places(tmp_path / "a.md")] == [
        ("甲", "```"),
        ("甲 > 乙", "正文二。"),
        ("丙 > 禁忌", "【禁忌】过敏者禁用。"),
        ("丙 > 用法", "口服。"),
    ]
    (tmp_path / "b.txt").write_text(
        "第二章 治疗\n一、药物\n（一）降压药\n每日一次。\n二、手术\n1.2 术前准备\n禁食。\n", "utf-8"
    )
    assert [(heading, text.splitlines()[-1]) for _, heading, text in places(tmp_path / "b.txt")] == [
        ("第二章 治疗 > 一、药物 > （一）降压药", "每日一次。"),
        ("第二章 治疗 > 二、手术 > 1.2 术前准备", "禁食。"),
    ]


def test_no_line_is_lost_whatever_looks_like_a_heading(tmp_path):
    text = "一、多饮\n二、多尿\n\n# 末尾\n三、多食"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    assert "\n".join(passage.text for passage in found(tmp_path / "a.txt")) == text


def zipped(name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"", "an empty file (0 bytes)"),
        ("a.txt", b" \n\n ", "there is no text in it"),
        ("a.pdf", b"%PDF-1.4\nbroken", "a damaged PDF"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an old or an encrypted Office file"),
        ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(99), "a picture"),
        ("a.docx", zipped("ppt/presentation.xml"), "slides"),
        ("a.docx", zipped("other.bin"), "an archive"),
        ("a.docx", zipped("word/document.xml"), "damaged"),
        ("a.xlsx", b"PK\x03\x04" + bytes(99), "damaged"),
        ("a.txt", bytes(range(256)) * 9, "neither text nor a document"),
        ("a.txt", ("好的文字" * 20).encode() + b"\xff\xfe" + "更多".encode(), "damaged text"),
        ("a.gz", b"\x1f\x8b" + bytes(99), "damaged"),
    ],
)
def test_files_that_give_no_text_say_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as error:
        read_document(tmp_path / name)
    assert message in str(error.value)


def test_an_encrypted_pdf_says_so(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [["密文。"]], password="secret")
    with pytest.raises(Unreadable, match="encrypted PDF: save a copy without a password"):
        read_document(path)


def test_the_content_decides_and_not_the_extension(tmp_path):
    pdf = write_pdf(tmp_path / "report.docx", [["其实是一份文件。"]])
    assert places(pdf) == [(1, "", "其实是一份文件。")]
    (tmp_path / "note.pdf").write_text(SENTENCE, "utf-8")
    assert places(tmp_path / "note.pdf") == [(None, "", SENTENCE)]


def test_control_characters_do_not_come_through(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "血\\u0000压\\ud800高"}\n', "utf-8")
    assert places(tmp_path / "a.jsonl") == [(None, "row 1", "血压高")]


def long_text(sentences=60):
    return "".join(
        f"第{number}条：患者应当按时服药，定期测量血压{'并记录' * (number % 7)}。" for number in range(sentences)
    )


@pytest.mark.parametrize(("size", "overlap"), [(64, 0), (64, 24), (200, 50), (16, 4)])
def test_passages_fit_end_at_sentences_and_cover_everything(tmp_path, size, overlap):
    text = long_text()
    (tmp_path / "a.txt").write_text(text, "utf-8")
    result = found(tmp_path / "a.txt", size, overlap)
    assert len(result) > 5
    assert all(count_tokens([passage.text])[0] <= size for passage in result)
    if size >= 64:
        assert all(passage.text.endswith("。") for passage in result)
        shared = [max(0, a.end - b.start) for a, b in itertools.pairwise(result)]
        assert all(
            count_tokens([text[b.start : b.start + s]])[0] <= overlap for b, s in zip(result[1:], shared, strict=True)
        )
        assert any(shared) == (overlap > 0)
    covered = set()
    for passage in result:
        covered.update(range(passage.start, passage.end))
    assert covered == set(range(len(text)))


def test_a_sentence_longer_than_a_passage_is_cut_at_commas_or_anywhere(tmp_path):
    (tmp_path / "a.txt").write_text("血压很高，需要服药，" * 40 + "甲" * 300, "utf-8")
    result = found(tmp_path / "a.txt", 50)
    assert all(count_tokens([passage.text])[0] <= 50 for passage in result)
    assert result[0].text.endswith("，")
    assert "".join(passage.text for passage in result) == "血压很高，需要服药，" * 40 + "甲" * 300


def test_passages_never_leave_their_section(tmp_path):
    (tmp_path / "a.md").write_text(f"# 甲\n{long_text(9)}\n# 乙\n短。\n", "utf-8")
    document = read_document(tmp_path / "a.md")
    assert document.sections[-1] == Section(document.text.index("# 乙"), len(document.text), None, "乙")
    for passage in passages(document, "a.md", 64, 16, count_tokens):
        assert ("乙" in passage.text) == (passage.heading == "乙")
