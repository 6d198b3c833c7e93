"""The rules that keep the repository a house: who may import whom, sizes, and documents that agree with each other."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("*.py"))
PACKAGE = sorted((ROOT / "medical_qwen").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
# Every module of the package, lowest first: a module imports only what stands before it.
ORDER = ("template", "arguments", "quantities", "answers", "metrics", "rewards", "evaluation", "evidence", "grounding",
         "causal", "records", "rendering", "tokens", "checkpoints", "lineage", "models", "perplexity", "generation",
         "retrieval", "training", "ppo", "scoring", "pages")  # fmt: skip
LIGHT = ("template", "medical_qwen.arguments", "medical_qwen.rewards", "medical_qwen.metrics", "medical_qwen.answers")
OPTIONAL = {"gradio", "faiss", "jieba", "deepspeed", "vllm", "bitsandbytes", "zstandard", "matplotlib",
            "openai", "bm25s", "sentence_transformers", "pypdfium2", "docx", "openpyxl", "bs4", "rjieba"}  # fmt: skip


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Full names of what a file imports; of relative imports too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} | (
                {f"{module}.{name.name}" for name in node.names} if module == "medical_qwen" else set()
            )
    return found


def noun(path: Path) -> str:
    return path.relative_to(ROOT / "medical_qwen").parts[0].removesuffix(".py")


def test_every_module_has_its_place_in_the_order():
    assert {noun(path) for path in PACKAGE} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    if noun(path) == "__init__":
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("medical_qwen.")}
    used |= {"template"} & imports(path)
    above = {name for name in used - {noun(path)} if ORDER.index(name) >= ORDER.index(noun(path))}
    assert not above, f"{noun(path)} imports {above}, which stand above it"


@pytest.mark.parametrize("path", [*SCRIPTS, *PACKAGE], ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_a_script(path):
    scripts = {script.stem for script in SCRIPTS} - {"template"}
    assert not {name.split(".")[0] for name in imports(path)} & scripts


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_trl_stays_in_the_stage_scripts_and_optional_packages_where_they_are_used(path):
    if noun(path) != "ppo":
        assert "trl" not in {name.split(".")[0] for name in imports(path)}
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & OPTIONAL


def test_light_modules_need_neither_torch_nor_transformers():
    code = f"import sys; import {', '.join(LIGHT)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [*SCRIPTS, *PACKAGE, *TOOLS], ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    limit = 400 if path in PACKAGE or path.name == "template.py" else 220
    assert len(lines) <= limit, f"{len(lines)} lines, at most {limit}"
    tree = ast.parse("\n".join(lines))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = (first.end_lineno if documented else node.lineno) or node.lineno
            size = (node.end_lineno or start) - start
            assert size <= 60, f"{node.name}: {size} lines without its docstring, at most 60"


def commands(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|python)\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"\s*#.*", "", line).strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_both_readmes_show_the_same_commands():
    chinese, english = commands("README.md"), commands("README_EN.md")
    assert len(chinese) > 10
    assert [line for line in chinese if line] == [line for line in english if line]


@pytest.mark.parametrize("name", ["README.md", "README_EN.md"])
def test_every_file_that_a_readme_names_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for found in set(re.findall(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.(?:py|sh|json|md|txt))\b", text)):
        if not found.startswith(("outputs/", "my_", "questions", "answers", "scores", "run_summary", "training_args",
                                 "trainer_state", "report", "adapter_config")):  # fmt: skip
            assert (ROOT / found).exists(), f"{name} names {found}"


def test_all_the_flags_that_a_readme_shows_are_known(monkeypatch, capsys):
    """Every command line of the README that calls one of our scripts uses flags of that script's parser."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    helps: dict[str, str] = {}
    for path in ROOT.glob("run_*.sh"):  # their flags are those of the script that they launch
        if stage := re.search(r"^launch (\w+\.py)", path.read_text(encoding="utf-8"), re.MULTILINE):
            text = text.replace(f"bash {path.name}", f"python {stage[1]}")
    for line in re.findall(r"^.*\b(?:python|torchrun)\b.*\.py\b.*$", text, re.MULTILINE):
        script = re.search(r"([\w/]+\.py)\b(.*)", line)
        if not script or not (ROOT / script[1]).exists():
            continue
        if script[1] not in helps:
            monkeypatch.setattr(sys, "argv", [script[1], "--help"])
            with pytest.raises(SystemExit, match="0"):  # in this process: torch is imported once for all scripts
                runpy.run_path(str(ROOT / script[1]), run_name="__main__")
            helps[script[1]] = capsys.readouterr().out
        for flag in re.findall(r"(--\w+)", script[2]):
            assert re.search(rf"{flag}\b", helps[script[1]]), f"{script[1]} has no {flag}"
    assert {"supervised_finetuning.py", "inference.py", "chatpdf.py", "evaluate_metrics.py"} <= helps.keys()


@pytest.mark.parametrize(
    ("variable", "message"),
    [({"TRAIN": "data/sft"}, "give those of the SFT as --train_file_dir"), ({"STAGES": "pt,sft"}, "got pt,sft")],
)
def test_what_the_pipeline_would_do_wrong_is_refused(tmp_path, variable, message):
    environment = os.environ | variable | {"OUTPUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", "run_pipeline.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()
