"""What can be asked for: the arguments that every training script shares, checked before a model loads.

The trainers' own options (learning rate, batch size, loss, ...) live in their own config classes (`SFTConfig`, ...).
Here is only what those do not have: which weights, which data. Importing this module costs nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path

# MedicalGPT's spelling -> the one name. The script sees only the right-hand side.
ALIASES = {
    "--lora_rank": "--lora_r",
    "--target_modules": "--lora_target_modules",
    "--modules_to_save": "--lora_modules_to_save",
    "--torch_dtype": "--dtype",
    "--model_max_length": "--max_length",
    "--block_size": "--max_length",
    "--peft_path": "--adapter_name_or_path",
    "--tokenizer_path": "--tokenizer_name_or_path",
    "--preprocessing_num_workers": "--dataset_num_proc",
    "--qlora_bits": "--load_in_bits",
}

# Options of TRL's trainers that would do nothing here, or too late: rows come to them rendered, tokenized and cut.
WITHOUT_EFFECT = {
    "--chat_template_path": "--template_name chooses a template",
    "--chat_template_kwargs": "--template_name chooses a template, qwen3_nothink one without thoughts",
    "--eos_token": "the end token is that of the tokenizer (--tokenizer_name_or_path)",
    "--pad_token": "the pad token is that of the tokenizer (--tokenizer_name_or_path)",
    "--assistant_only_loss": "what the assistant says is learned, nothing else",
    "--completion_only_loss": "what the assistant says is learned, nothing else",
    "--dataset_text_field": "the form of a record is found by its columns",
    "--dataset_kwargs": "the form of a record is found by its columns",
    "--truncation_mode": "the oldest turns go first",
}


@dataclass
class ModelArguments:
    """Which weights are trained, and how: full, LoRA or QLoRA."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model directory, hub id, or an earlier stage's adapter directory (its base is found from it)."
        },
    )
    adapter_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Adapter of an earlier stage to go on from, when --model_name_or_path names its base."},
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Tokenizer directory or hub id. Default: that of the checkpoint to start from."},
    )
    template_name: str | None = field(
        default=None,
        metadata={"help": "Prompt template of template.py. Default: the checkpoint's own, or vicuna if it has none."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Of the weights: bfloat16, float16, float32, or auto (in full training float32; of a frozen base "
            "bfloat16 where the machine is fast at it, else float32)."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ... Default: the library's choice."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha; the update is scaled by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA branch."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Module names to adapt, or all-linear."}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained in full beside the adapter, e.g. embed_tokens lm_head."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r) (arXiv 2312.03732)."})
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed LoRA (arXiv 2402.09353)."})
    load_in_bits: int | None = field(
        default=None, metadata={"help": "QLoRA: load the frozen base in 8 or 4 bits (needs --use_peft)."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Same as --load_in_bits 8."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Same as --load_in_bits 4."})

    def __post_init__(self) -> None:
        asked = {bits for bits, on in ((8, self.load_in_8bit), (4, self.load_in_4bit)) if on}
        asked |= {self.load_in_bits} - {None}
        if len(asked) > 1 or not asked <= {4, 8}:
            raise ValueError(f"--load_in_bits: expected 4 or 8, got {sorted(asked)}")
        self.load_in_bits = asked.pop() if asked else None
        if self.load_in_bits and not self.use_peft:
            raise ValueError(
                f"--load_in_bits {self.load_in_bits} freezes the base: add --use_peft True to train an adapter"
            )
        if self.lora_r < 1:
            raise ValueError(f"--lora_r: expected a positive rank, got {self.lora_r}")
        if self.dtype not in (known := ("auto", "bfloat16", "float16", "float32")):
            raise ValueError(f"--dtype: expected one of {', '.join(known)}, got {self.dtype!r}")


@dataclass
class DataArguments:
    """Which records are trained on, which are held out."""

    train_file_dir: str | None = field(
        default=None, metadata={"help": "File, or folder read recursively, of training records."}
    )
    validation_file_dir: str | None = field(
        default=None,
        metadata={"help": "File or folder of held-out records. Training rows found in it are left out of training."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub data set, or a directory written by datasets' save_to_disk."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of --dataset_name to train on."})
    record_format: str | None = field(
        default=None, metadata={"help": "Name of the record format, when detection by columns is not wanted."}
    )
    text_documents: str = field(
        default="file",
        metadata={"help": "In .txt files a document is a whole `file`, or a `paragraph` (blank lines separate)."},
    )
    validation_split_ratio: float = field(
        default=0.0, metadata={"help": "Share of the rows held out when there is no --validation_file_dir."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only this many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only this many held-out rows."})
    on_bad_record: str = field(
        default="stop", metadata={"help": "`stop` before training and list what is wrong, or `skip` and say how many."}
    )
    show_samples: int = field(
        default=0, metadata={"help": "Print this many rendered samples, the learned part coloured, before training."}
    )

    def __post_init__(self) -> None:
        if not (self.train_file_dir or self.dataset_name):
            raise ValueError("no training data: give --train_file_dir (file or folder) or --dataset_name")
        if self.train_file_dir and self.dataset_name:
            raise ValueError("--train_file_dir and --dataset_name are both given: choose one")
        for flag in ("train_file_dir", "validation_file_dir"):
            path = getattr(self, flag)
            if path and not Path(path).exists():
                raise FileNotFoundError(f"--{flag}: {path} does not exist")
        if not 0 <= self.validation_split_ratio < 1:
            raise ValueError(f"--validation_split_ratio: expected 0 <= ratio < 1, got {self.validation_split_ratio}")
        if self.validation_file_dir and self.validation_split_ratio:
            raise ValueError("--validation_file_dir and --validation_split_ratio are both given: choose one")
        for flag, known in (("on_bad_record", ("stop", "skip")), ("text_documents", ("file", "paragraph"))):
            if getattr(self, flag) not in known:
                raise ValueError(f"--{flag}: expected {' or '.join(known)}, got {getattr(self, flag)!r}")
