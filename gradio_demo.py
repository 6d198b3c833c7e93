"""Chat with a model in the browser.

    CUDA_VISIBLE_DEVICES=0 python gradio_demo.py --base_model path_to_model --lora_model path_to_lora
    python gradio_demo.py --base_model outputs/sft --only_cpu
    python gradio_demo.py --api_base http://127.0.0.1:8000/v1

Answers are streamed and can be stopped, asked for again, taken back; questions can be edited. With --lora_model the
page compares answers with and without the adapter, on one set of weights. A conversation can be taken away as a
training record, and thumbs leave preference pairs in --preference_file for dpo_training.py.
A reload of the page begins a new conversation. No user sees another one's.
"""

import argparse
import logging

from medical_qwen.causal import Network
from medical_qwen.generation import add_engine_arguments, check_engine_arguments, select_gpus
from medical_qwen.pages import Chat, Text, Words, add_page_arguments, check_page_arguments, open_page, serve

TITLE = Text("医问", "Medical Qwen")
ABOUT = Text("本地医疗问答", "Medical questions and answers")
GREETING = Text(
    "### 您好，想了解什么？\n说清楚年龄、症状、持续时间和正在吃的药，回答会更有用。请不要填写姓名、证件号等个人信息。",
    "### Hello, what would you like to know?\nAge, symptoms, how long, and medicines taken make an answer more "
    "useful. Please give no names or other personal data.",
)
EXAMPLES = [
    Text("感冒一般多久能好？什么情况要去医院？", "How long does a cold last, and when should I see a doctor?"),
    Text("在家量血压要注意什么？", "How do I measure my blood pressure correctly at home?"),
    Text("空腹血糖 6.5 mmol/L 正常吗？", "Is a fasting glucose of 6.5 mmol/L normal?"),
    Text("布洛芬和对乙酰氨基酚有什么区别？", "How do ibuprofen and paracetamol differ?"),
]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_engine_arguments(parser)
    add_page_arguments(parser)
    parser.add_argument(
        "--causal",
        nargs="?",
        const="data/causal",
        metavar="DIR",
        help="reason with the causal network of this folder (default: %(const)s; off without the flag)",
    )
    args = parser.parse_args(argv)
    check_engine_arguments(parser, args)
    check_page_arguments(parser, args)
    return args


def build(engine, base, preference_file: str, network: Network | None):
    """The page: chat on the left, settings on the right (on a phone: below)."""
    words = Words()
    with open_page(TITLE, ABOUT, words) as (page, language):
        import gradio as gr

        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                chat = Chat(words, language, engine, base, preference_file, GREETING, EXAMPLES, network)
            with gr.Column(scale=1, min_width=260):
                chat.settings(words)
        chat.connect()
    return page


def main(args: argparse.Namespace) -> None:
    from medical_qwen.generation.compare import load_both  # torch, after `select_gpus`

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request to --api_base
    network = Network.load(args.causal) if args.causal else None
    engine, base = load_both(args)
    serve(build(engine, base, args.preference_file, network), args)


if __name__ == "__main__":
    arguments = parse_args()
    select_gpus(arguments)
    from medical_qwen.training import run

    run(lambda: main(arguments))
