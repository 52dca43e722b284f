"""TRL's two trainers that distil, and Liger's loss in one of them, on token ids; in the peers' environment.

No trainer answers prompts itself here: the first is told never to, the second gets the rows' answers instead.
"""

import os

import torch
from datasets import Dataset
from rows import read
from transformers import AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.gkd import GKDConfig, GKDTrainer


class FusedTrainer(GKDTrainer):
    """GKD's step, but for its loss: Liger's, of hidden states and heads, by its own defaults."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        assert not return_outputs, "it has no logits"
        labels = inputs["labels"][:, 1:].reshape(-1)
        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=self.beta, temperature=1.0)
        with self.accelerator.autocast():  # elsewhere the model's own forward enters it
            with torch.no_grad():
                teacher = self._heard(self.teacher_model.eval(), inputs)
            mean = loss(*self._heard(model, inputs), *teacher, labels)
        return mean * (labels != -100).sum() / num_items_in_batch

    @staticmethod
    def _heard(model, inputs):
        """Hidden states that its head is asked with, and the head's weight."""
        read_by = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        hidden = model.get_decoder()(**read_by, use_cache=False).last_hidden_state[:, :-1]
        return hidden.flatten(0, 1), model.get_output_embeddings().weight


class GivenTrainer(DistillationTrainer):
    """TRL's step as it is; where the student would answer a prompt, which names a row here, the row's answer is."""

    answers: dict[str, tuple[list[int], list[int]]]

    def _generate(self, prompts):
        given = [self.answers[name] for name in prompts]
        return [prompt for prompt, _ in given], [answer for _, answer in given], None, None, None


def distillation(job, config, clock):
    """The trainer that `config` names: "gkd" unless it does, "chunked" or "liger"."""
    kind = config.pop("trainer", "gkd")
    longest, weights = config.pop("max_length"), config["model_init_kwargs"]
    rows = [(row["id"], *row["turns"]) for row in read(job["rows"])]
    assert max(len(prompt) + len(answer) for _, prompt, answer in rows) <= longest, "TRL would cut rows"
    config |= {"beta": job["beta"], "temperature": 1.0}
    if weights is not None:
        config["teacher_model_init_kwargs"] = dict(weights)
    named = {
        "teacher_model": job["teacher"],
        "processing_class": AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        "callbacks": [clock],
    }
    if kind == "chunked":
        prompts = Dataset.from_list([{"prompt": name} for name, _, _ in rows])
        trainer = GivenTrainer(job["model"], args=DistillationConfig(**config), train_dataset=prompts, **named)
        trainer.answers = {name: (prompt, answer) for name, prompt, answer in rows}
        return trainer
    config |= {"lmbda": 0.0, "seq_kd": False, "max_length": longest}
    masked = [
        {"prompt": "", "input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        for _, prompt, answer in rows
    ]
    maker = FusedTrainer if kind == "liger" else GKDTrainer
    return maker(job["model"], args=GKDConfig(**config), train_dataset=Dataset.from_list(masked), **named)
