"""Each loss and its gradient equal those of TRL's own trainers on the same batch.

TRL's loss code runs on the same model, adapter attached, over padded rows and with the whole
logits; mgk packs the rows and goes through the vocabulary in blocks. fp32; a tolerance of 1e-5.
"""

import types

import pytest
import torch
from preference_rows import ANSWERS, IGNORED, PAIRS, AnswerRows, PairRows, Rows
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_pt_utils import LabelSmoother

from mgk_core.contract.bundle import Tokens

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
EXAMPLES = (*(p.chosen for p in PAIRS), Tokens((2, 9, 8, 7, 6), (2, 9, 8, 7, 6)))
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
ACCELERATOR = types.SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    parallelism_config=None,
)


@pytest.fixture(scope="module")
def trl():
    """TRL's trainers; imported here, since collecting other tests need not wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        import trl
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.gkd import GKDTrainer
        from trl.experimental.orpo import ORPOTrainer
        from trl.trainer.utils import add_fused_lm_head

    return types.SimpleNamespace(
        DPOTrainer=trl.DPOTrainer, KTOTrainer=trl.KTOTrainer, SFTTrainer=trl.SFTTrainer,
        CPOTrainer=CPOTrainer, GKDTrainer=GKDTrainer, ORPOTrainer=ORPOTrainer,
        add_fused_lm_head=add_fused_lm_head,
    )  # fmt: skip


def padded(examples):
    """Return (ids, attention mask, mask of what is learned) as padded rows."""
    width = max(len(e.ids) for e in examples)
    rows = [list(e.ids) + [0] * (width - len(e.ids)) for e in examples]
    seen = [[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in examples]
    labels = [[*e.labels, *[IGNORED] * (width - len(e.ids))] for e in examples]
    learned = torch.tensor(labels) != IGNORED
    return torch.tensor(rows), torch.tensor(seen), learned.long()


def trainer(cls, model, **attributes):
    """Return TRL's trainer with what its loss reads, without its training loop."""
    made = cls.__new__(cls)
    shared = {
        "model": model,
        "accelerator": ACCELERATOR,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "_metrics": {"train": Figures(), "eval": Figures()},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (shared | attributes).items():
        setattr(made, name, value)
    return made


class Figures(dict):
    """A dictionary of lists, as a trainer keeps what it logs."""

    def __missing__(self, key):
        self[key] = []
        return self[key]


def gradients(loss, adapter):
    """Return the gradient of a loss with respect to the whole adapter, as one vector."""
    found = torch.autograd.grad(loss, adapter.parameters(), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def agree(ctx, rows, expected):
    """Check that a micro-batch's mean loss and its gradients are TRL's."""
    total, count = ctx.loss(ctx.batch(rows))
    found = total / count
    torch.testing.assert_close(found, expected, **CLOSE)
    own, theirs = gradients(found, ctx.adapter), gradients(expected, ctx.adapter)
    assert theirs.norm() > 1e-4  # something to compare
    assert (own - theirs).norm() <= 1e-5 * theirs.norm()


def dpo_inputs(model, adapter):
    """Return TRL's batch: chosen rows, then rejected ones; the reference by TRL's own code."""
    examples = [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS]
    ids, seen, learned = padded(examples)
    inputs = {"input_ids": ids, "attention_mask": seen, "completion_mask": learned}
    with torch.no_grad(), adapter.disabled():
        labels = ids.masked_fill(learned == 0, IGNORED)
        out = model(
            input_ids=ids, attention_mask=seen, labels=labels, fused_lm_head=True
        )
    chosen, rejected = out.log_probs.sum(1).chunk(2)
    return inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


DPO_CASES = (
    {"loss_type": "sigmoid", "beta": 0.3},
    {"loss_type": "hinge", "beta": 0.2},
    {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2},
    {"loss_type": "exo_pair", "beta": 0.3, "label_smoothing": 0.1},
    {"loss_type": "nca_pair", "beta": 0.3},
    {"loss_type": "bco_pair", "beta": 0.3},
    {"loss_type": "sppo_hard", "beta": 0.5},
    {"loss_type": "apo_zero", "beta": 0.3},
    {"loss_type": "apo_down", "beta": 0.3},
    {"loss_type": "sigmoid_norm", "beta": 2.0},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3},
)


@pytest.mark.parametrize("case", DPO_CASES, ids=lambda c: str(c["loss_type"]))
def test_dpo_is_trls(trl, bundle, adapter, objective, case):
    """Every loss_type, with the reference from the adapter switched off."""
    ctx = objective(PairRows(bundle, [p.chosen for p in PAIRS]), type="dpo", **case)
    trl.add_fused_lm_head(bundle.model, outputs=OUTPUTS)
    names = case["loss_type"]
    names = [names] if isinstance(names, str) else names
    theirs = trainer(
        trl.DPOTrainer, bundle.model,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=1.0, use_weighting=False, beta=case["beta"],
        label_smoothing=case.get("label_smoothing", 0.0), loss_types=names,
        loss_weights=case.get("loss_weights", [1.0] * len(names)),
    )  # fmt: skip
    inputs = dpo_inputs(bundle.model, adapter)
    agree(ctx, range(4), theirs._compute_loss(bundle.model, inputs, False))
    logged = theirs._metrics["eval"]
    (figures, *_) = ctx.take_figures()
    for name, values in figures.items():
        assert float(values.mean()) == pytest.approx(logged[name][0], abs=1e-4), name


def test_label_smoothing_of_dpo_is_trls(trl, bundle, adapter, objective):
    """TRL smooths its sigmoid loss as "aot" on a single pair, where sorting changes nothing."""
    options = {"beta": 0.3, "label_smoothing": 0.2}
    ctx = objective(PairRows(bundle, [p.chosen for p in PAIRS]), type="dpo", **options)
    trl.add_fused_lm_head(bundle.model, outputs=OUTPUTS)
    theirs = trainer(
        trl.DPOTrainer, bundle.model,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        use_weighting=False, loss_types=["aot"], loss_weights=[1.0], **options,
    )  # fmt: skip
    inputs = dpo_inputs(bundle.model, adapter)
    for row in range(4):
        places = [row, row + 4]
        one = {k: v[places] for k, v in inputs.items() if not k.startswith("ref")}
        one |= {k: v[[row]] for k, v in inputs.items() if k.startswith("ref")}
        expected = theirs._compute_loss(bundle.model, one, False)
        agree(ctx, [row], expected)


def concatenated(examples, prefix):
    """Return one half of the batch that ORPO's and CPO's trainers concatenate."""
    ids, seen, learned = padded(examples)
    return {
        f"{prefix}_input_ids": ids,
        f"{prefix}_attention_mask": seen,
        f"{prefix}_labels": ids.masked_fill(learned == 0, IGNORED),
    }


def both():
    """Return the batch of ORPO's and CPO's trainers."""
    chosen = concatenated([p.chosen for p in PAIRS], "chosen")
    return chosen | concatenated([p.rejected for p in PAIRS], "rejected")


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_is_trls(trl, bundle, objective, beta):
    """The likelihood of the whole chosen text, and the odds ratio of the answers."""
    rows = PairRows(bundle, [p.chosen for p in PAIRS])
    ctx = objective(rows, type="orpo", beta=beta)
    theirs = trainer(trl.ORPOTrainer, bundle.model, beta=beta, padding_value=0)
    expected, logged = theirs.get_batch_loss_metrics(bundle.model, both())
    agree(ctx, range(4), expected)
    (figures, *_) = ctx.take_figures()
    for name, values in figures.items():
        assert float(values.mean()) == pytest.approx(logged[name], abs=1e-4), name


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 2.0, "simpo_gamma": 1.0},
        {"beta": 2.5, "simpo_gamma": 0.5, "label_smoothing": 0.1, "cpo_alpha": 0.5},
    ],
)
def test_simpo_is_trls(trl, bundle, objective, options):
    """With and without label smoothing and the likelihood's part."""
    rows = PairRows(bundle, [p.chosen for p in PAIRS])
    ctx = objective(rows, type="simpo", **options)
    settings = {"label_smoothing": 0.0, "cpo_alpha": 0.0, **options}
    theirs = trainer(
        trl.CPOTrainer, bundle.model, loss_type="simpo", alpha=0.0, pad_token_id=0, **settings
    )  # fmt: skip
    expected, logged = theirs.get_batch_loss_metrics(bundle.model, both())
    agree(ctx, range(4), expected)
    (figures, *_) = ctx.take_figures()
    for name, values in figures.items():
        assert float(values.mean()) == pytest.approx(logged[name], abs=1e-4), name


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_is_trls(trl, bundle, adapter, objective, loss_type):
    """Weighted good and bad answers, the divergence estimated on mismatched ones."""
    options = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    rows = AnswerRows(bundle, [a.answer for a in ANSWERS])
    ctx = objective(rows, type="kto", loss_type=loss_type, **options)
    trl.add_fused_lm_head(bundle.model, outputs=OUTPUTS)
    ids, seen, learned = padded([a.answer for a in ANSWERS])
    inputs = {
        "input_ids": ids,
        "attention_mask": seen,
        "completion_mask": learned,
        "label": torch.tensor([a.desirable for a in ANSWERS]),
    }
    estimates = loss_type == "kto"
    if estimates:
        ids, seen, learned = padded(mismatched())
        inputs |= {"KL_input_ids": ids, "KL_attention_mask": seen}
        inputs |= {"KL_completion_mask": learned}
    theirs = trainer(
        trl.KTOTrainer, bundle.model,
        loss_type=loss_type, calculate_KL=estimates, precompute_ref_logps=True, **options,
    )  # fmt: skip
    with torch.no_grad(), adapter.disabled():
        inputs["ref_logps"] = reference(bundle.model, inputs)
        inputs["ref_KL_logps"] = theirs._compute_kl_logps(bundle.model, inputs)
    expected = theirs._compute_loss(bundle.model, inputs, False)
    agree(ctx, range(5), expected)
    logged = theirs._metrics["eval"]
    (figures, *_) = ctx.take_figures()
    for name, values in figures.items():
        assert float(values.mean()) == pytest.approx(logged[name][0], abs=1e-4), name
    assert not estimates or float(figures["kl"]) > 1e-3


def mismatched():
    """Each prompt with the answer before it, as TRL's ``add_kl_completion_ids`` makes them."""
    found = []
    for own, other in zip(ANSWERS, (ANSWERS[-1], *ANSWERS[:-1]), strict=True):
        prompt = [
            i for i, label in zip(own.answer.ids, own.answer.labels, strict=True)
            if label == IGNORED
        ]  # fmt: skip
        answer = [label for label in other.answer.labels if label != IGNORED]
        labels = (*(IGNORED,) * len(prompt), *answer)
        found.append(Tokens((*prompt, *answer), labels))
    return found


def reference(model, inputs):
    """Return each answer's log-likelihood, as TRL sums it."""
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    out = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=labels,
        fused_lm_head=True,
    )
    return out.log_probs.sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_trls(trl, bundle, adapter, objective, beta, temperature):
    """Forward KL, reverse KL and what lies between, the base as teacher."""
    options = {"beta": beta, "temperature": temperature}
    rows = Rows(bundle, EXAMPLES)
    ctx = objective(rows, type="distill", likelihood_weight=1e-30, **options)
    ids, seen, learned = padded(EXAMPLES)
    student = bundle.model(input_ids=ids, attention_mask=seen).logits
    with torch.no_grad(), adapter.disabled():
        teacher = bundle.model(input_ids=ids, attention_mask=seen).logits
    labels = ids.masked_fill(learned == 0, IGNORED)[:, 1:]
    expected = trl.GKDTrainer.generalized_jsd_loss(
        student[:, :-1], teacher[:, :-1], labels, **options
    )
    agree(ctx, range(5), expected)


def test_label_smoothing_of_the_likelihood_is_transformers(bundle, objective):
    """As ``label_smoothing_factor`` of its Trainer."""
    ctx = objective(Rows(bundle, EXAMPLES), type="likelihood", label_smoothing=0.15)
    ids, seen, learned = padded(EXAMPLES)
    labels = ids.masked_fill(learned == 0, IGNORED)
    logits = bundle.model(input_ids=ids, attention_mask=seen).logits
    smoother = LabelSmoother(epsilon=0.15)
    agree(ctx, range(5), smoother({"logits": logits}, labels, shift_labels=True))


def test_dft_is_trls(trl, bundle, objective):
    """Each token's loss times its own probability, as SFTTrainer's ``loss_type = "dft"``."""
    ctx = objective(Rows(bundle, EXAMPLES), type="likelihood", loss_type="dft")
    trl.add_fused_lm_head(bundle.model, outputs=OUTPUTS)
    ids, seen, learned = padded(EXAMPLES)
    args = types.SimpleNamespace(loss_type="dft", average_tokens_across_devices=False)
    theirs = trainer(
        trl.SFTTrainer, bundle.model, args=args, compute_loss_func=None, label_smoother=None
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": seen}
    inputs["labels"] = ids.masked_fill(learned == 0, IGNORED)
    agree(ctx, range(5), theirs.compute_loss(bundle.model, inputs))


def test_neftune_is_transformers(bundle):
    """The same seed gives the same noise on the embeddings of one sequence."""
    from mgk_hf.predictions import noisy_embeddings

    model, alpha = bundle.model, 5.0
    batch = bundle.pack([EXAMPLES[2]])
    embed = model.get_input_embeddings()
    model.train()
    embed.neftune_noise_alpha = alpha
    torch.manual_seed(3)
    handle = embed.register_forward_hook(neftune_post_forward_hook)
    expected = embed(batch.input_ids)
    handle.remove()
    torch.manual_seed(3)
    with noisy_embeddings(model, batch, alpha):
        found = embed(batch.input_ids)
    assert (expected - embed(batch.input_ids)).abs().max() > 0.1
    torch.testing.assert_close(found, expected, **CLOSE)
