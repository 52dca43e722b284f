"""Preference losses by the names of TRL and of axolotl, and the options that each reads."""

from potstill.convert import common
from potstill.convert.account import Account
from potstill.convert.draft import Part
from potstill.errors import RecipeError

LOSSES = {
    "sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo_length_normalised", "robust": "robust",
    "sigmoid_norm": "length_normalised", "apo_zero": "apo_zero", "apo_down": "apo_down", "orpo": "orpo",
    "simpo": "simpo", "kto": "kto",
}  # fmt: skip
"""TRL's ipo divides log-probabilities by the answer's length; the paper's does not, and is `ipo` here."""
KEYS = "loss_type dpo_loss_type dpo_norm_loss"
BETAS = ("beta", "rl_beta", "dpo_beta")
SMOOTHING = ("label_smoothing", "dpo_label_smoothing")
NO_PART = "this loss does not read it"


def loss_of(account: Account, part: Part, asked: str) -> None:
    """The loss with its options. RecipeError where potstill has none like it: another would be another experiment."""
    if asked not in LOSSES:
        what = f"the loss '{asked}' has no counterpart in potstill"
        raise RecipeError(account.document.name, what, f"Those that have one: {', '.join(LOSSES)}")
    smoothing = next((common.number(account, key) for key in SMOOTHING if account.has(key)), 0.0)
    loss = "conservative" if asked == "sigmoid" and smoothing else LOSSES[asked]
    part.add("loss", loss, "" if loss == asked else f"{asked}, as TRL means it")
    account.note_all(KEYS, "carried", f"{part.name}.loss: {loss}")
    if loss in ("conservative", "robust"):
        part.add("flipped", smoothing, "label_smoothing")
        account.note_all(" ".join(SMOOTHING), "carried", f"{part.name}.flipped")
    account.note_all(" ".join(SMOOTHING), "ours" if not smoothing else "left", "0" if not smoothing else NO_PART)
    _beta(account, part, loss)
    _weights(account, part, loss)


def _beta(account: Account, part: Part, loss: str) -> None:
    """ORPO's lambda goes by the name of beta in TRL."""
    keys = ("orpo_alpha", *BETAS) if loss == "orpo" else BETAS
    field = "odds_weight" if loss == "orpo" else "beta"
    for key in keys:
        if common.carry(account, part, key, field):
            break
    else:
        part.add(field, 0.1, "default of TRL")
    for key in ("orpo_alpha", *BETAS):
        account.note(key, "left", NO_PART)


def _weights(account: Account, part: Part, loss: str) -> None:
    if loss == "kto":
        common.carry(account, part, "kto_desirable_weight", "desirable_weight")
        common.carry(account, part, "kto_undesirable_weight", "undesirable_weight")
    elif loss == "simpo":
        if not common.carry(account, part, "simpo_gamma", "gamma"):
            part.add("gamma", 0.5, "default of TRL")
        alpha = common.number(account, "cpo_alpha", 1.0)
        part.add("sft_term", alpha, "cpo_alpha" if account.has("cpo_alpha") else "cpo_alpha, default of TRL")
        account.note("cpo_alpha", "carried", f"{part.name}.sft_term")
    else:
        common.carry(account, part, "rpo_alpha", "sft_term")
    account.note_all("kto_desirable_weight kto_undesirable_weight simpo_gamma cpo_alpha rpo_alpha", "left", NO_PART)
