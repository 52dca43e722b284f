"""Runs inside the peers' environment: TRL's own trainers compute a loss and its gradients on a given batch.

    python trl_peer.py FOLDER

FOLDER holds `policy/` and `reference/` (models with tokenizer), `chats.json` (conversations), `pairs.json` (token ids)
and `template.jinja` (the chat template, with TRL's marks around what an assistant says). It writes, for each dtype,
`sft-<dtype>.safetensors` and `dpo-<dtype>.safetensors`: "loss", and "gradient/<parameter>" for every parameter.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

BETA = 0.1
PLAIN = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_length": None,
}


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.to(dtype)


def measured(trainer, inputs, out):
    """One loss as the trainer computes it, and the gradients of every parameter."""
    trainer.model.zero_grad()
    trainer.model.eval()  # no dropout in these models; eval keeps it so
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    tensors = {"loss": loss.detach().reshape(1)}
    for name, parameter in trainer.model.named_parameters():
        tensors[f"gradient/{name}"] = parameter.grad.contiguous()
    tensors["gradient/lm_head.weight"] = trainer.model.get_output_embeddings().weight.grad.clone()
    save_file(tensors, out)


def sft(folder, dtype, out, scratch):
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.chat_template = (folder / "template.jinja").read_text()
    rows = [{"messages": chat} for chat in json.loads((folder / "chats.json").read_text())]
    config = SFTConfig(
        output_dir=scratch, assistant_only_loss=True, per_device_train_batch_size=len(rows), packing=False, **PLAIN
    )
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(load(folder / "policy", dtype), config, train_dataset=data, processing_class=tokenizer)
    prepared = [trainer.train_dataset[i] for i in range(len(rows))]
    measured(trainer, trainer.data_collator(prepared), out)
    learnt = [[t for t, label in zip(r["input_ids"], r["labels"], strict=True) if label != -100] for r in prepared]
    (folder / "learnt.json").write_text(json.dumps({"ids": [r["input_ids"] for r in prepared], "learnt": learnt}))


def dpo(folder, dtype, out, scratch):
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    pairs = json.loads((folder / "pairs.json").read_text())
    config = DPOConfig(output_dir=scratch, beta=BETA, per_device_train_batch_size=len(pairs), **PLAIN)
    some = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # the batch itself is given as tokens
    trainer = DPOTrainer(
        load(folder / "policy", dtype),
        load(folder / "reference", dtype),
        config,
        train_dataset=some,
        processing_class=tokenizer,
    )
    measured(trainer, trainer.data_collator(pairs), out)


def main():
    folder = Path(sys.argv[1])
    for name in ("float32", "float64"):
        dtype = getattr(torch, name)
        with tempfile.TemporaryDirectory() as scratch:
            sft(folder, dtype, folder / f"sft-{name}.safetensors", scratch)
            dpo(folder, dtype, folder / f"dpo-{name}.safetensors", scratch)


main()
