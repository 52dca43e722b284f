"""Runs inside the peers' environment: TRL's own trainers compute losses and their gradients on given batches.

    python trl_peer.py FOLDER

FOLDER holds `policy/` and `reference/` (models with tokenizer), `template.jinja` (the chat template, with TRL's marks
around what an assistant says) and `cases.json`: by name, a case's `trainer`, its `config` and its `batches` of rows;
conversations for sft, token ids for the others. It writes `NAME-DTYPE.safetensors` for each case and dtype: "loss", the
mean over the case's batches, and "gradient/PARAMETER" of every parameter; and `learnt.json`, what sft learns.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

TRAINERS = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
}
PLAIN = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_length": None,
}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
ANSWER = {"prompt": "a", "completion": "b", "label": True}


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model.to(dtype)


def build(folder, case, dtype, scratch):
    """The case's trainer. But for SFT its own data is a stand-in: batches are given to it as tokens."""
    kind, rows = case["trainer"], case["batches"][0]
    trainer_class, config_class = TRAINERS[kind]
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    if kind == "sft":
        tokenizer.chat_template = (folder / "template.jinja").read_text()
        data = rows
    else:
        data = [ANSWER if kind == "kto" else PAIR] * 2
    config = config_class(output_dir=scratch, per_device_train_batch_size=max(len(rows), 2), **PLAIN, **case["config"])
    reference = {"ref_model": load(folder / "reference", dtype)} if kind in ("dpo", "kto") else {}
    return trainer_class(
        model=load(folder / "policy", dtype),
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        **reference,
    )


def concatenated(row):
    """A pair as the CPO and ORPO trainers collate it."""
    prompt = row["prompt_ids"]
    features = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        answer = row[f"{side}_ids"]
        features[f"{side}_input_ids"] = prompt + answer
        features[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        features[f"{side}_labels"] = [-100] * len(prompt) + answer
    return features


def inputs(trainer, kind, rows):
    if kind == "sft":
        rows = [trainer.train_dataset[i] for i in range(len(rows))]
    elif kind in ("cpo", "orpo"):
        rows = [concatenated(row) for row in rows]
    return trainer.data_collator(rows)


def measured(trainer, batches, out):
    """The mean loss over batches, each as the trainer computes it, and the gradients of every parameter."""
    trainer.model.zero_grad()
    trainer.model.eval()  # no dropout in these models; eval keeps it so
    loss = sum(trainer.compute_loss(trainer.model, batch) for batch in batches) / len(batches)
    loss.backward()
    tensors = {"loss": loss.detach().reshape(1)}
    for name, parameter in trainer.model.named_parameters():
        tensors[f"gradient/{name}"] = parameter.grad.contiguous()
    tensors["gradient/lm_head.weight"] = trainer.model.get_output_embeddings().weight.grad.clone()
    save_file(tensors, out)


def note_learnt(trainer, folder):
    rows = list(trainer.train_dataset)
    learnt = [[t for t, label in zip(r["input_ids"], r["labels"], strict=True) if label != -100] for r in rows]
    (folder / "learnt.json").write_text(json.dumps({"ids": [r["input_ids"] for r in rows], "learnt": learnt}))


def main():
    folder = Path(sys.argv[1])
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        for dtype in ("float32", "float64"):
            with tempfile.TemporaryDirectory() as scratch:
                trainer = build(folder, case, getattr(torch, dtype), scratch)
                batches = [inputs(trainer, case["trainer"], rows) for rows in case["batches"]]
                measured(trainer, batches, folder / f"{name}-{dtype}.safetensors")
                if case["trainer"] == "sft":
                    note_learnt(trainer, folder)


main()
