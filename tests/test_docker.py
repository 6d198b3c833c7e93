"""Dockerfile and docker-compose.yml: what can be checked without an engine."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml


@pytest.fixture(scope="module")
def compose(root) -> dict:
    return yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))


def instructions(root) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (root / "Dockerfile").read_text(encoding="utf-8"))
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_has_the_tested_vllm_and_every_file_that_it_copies_or_runs(root):
    found = instructions(root)
    version = re.search(r"^vllm==(.+)$", (root / "requirements-vllm.txt").read_text(), re.MULTILINE)[1]
    assert ("ARG", f"VLLM_VERSION={version}") in found
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((root / name).exists() for name in allowed)
    copied = [shlex.split(rest)[:-1] for name, rest in found if name == "COPY"]
    assert all((root / name).exists() for names in copied for name in names)
    assert {name.split("/")[0] for names in copied for name in names} - {"."} <= set(allowed)
    run = next(rest for name, rest in found if name == "RUN")  # as root: who runs the server may not write the stamp
    assert "install requirements-model.txt" in run and ("USER", "app") in found[found.index(("RUN", run)) :]
    assert dict(found)["CMD"] == '["bash", "vllm_deployment.sh"]'


def test_the_services_run_scripts_that_are_in_the_image_and_are_open_to_this_machine_only(root, compose):
    ignored = (root / ".dockerignore").read_text().splitlines()
    for service in compose["services"].values():
        assert f"!{service['command'][1]}" in ignored
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    page, server = compose["services"]["page"], compose["services"]["server"]
    assert page["image"] == server["image"] and page["depends_on"]["server"]["condition"] == "service_healthy"
    flags = subprocess.run([sys.executable, root / "gradio_demo.py", "--help"], capture_output=True, text=True).stdout
    assert all(flag.partition("=")[0] in flags for flag in page["command"][2:])
    assert "--api_base=http://server:8000/v1" in page["command"]


def test_the_settings_of_the_server_are_those_that_its_script_reads(root, compose):
    script = (root / "vllm_deployment.sh").read_text(encoding="utf-8")
    for name in compose["services"]["server"]["environment"]:
        assert re.search(rf"\$\{{{name}:", script) or f"${name}" in script, name
