"""mgk's LoRA against the PEFT library: forward, gradients, merged weights; and PEFT's files both ways."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

from mgk_core.contract.errors import InputError
from mgk_core.testing.history import shake
from mgk_core.testing.zoo import Attention
from mgk_lora.peft_format import attach_peft, save_peft, why_not

peft = pytest.importorskip("peft")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Net(nn.Module):
    """One module of every kind that PEFT adapts as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(17, 10)
        self.conv = nn.Conv1d(10, 14, 3, padding=1)
        self.image = nn.Conv2d(3, 4, (3, 2))
        self.gpt = Conv1D(12, 14)
        self.att = Attention(12, 4)
        self.block = nn.ModuleDict(
            {"fc": nn.Linear(12, 9), "out": nn.Linear(9, 7, bias=False)}
        )
        for parameter in self.parameters():
            parameter.data.mul_(1.5)
            parameter.requires_grad_(False)

    def forward(self, ids):
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        x = self.att(torch.tanh(self.gpt(x.contiguous())))
        x = self.block["out"](torch.tanh(self.block["fc"](x)))
        return x + self.image(x[:, :3, :6, None].expand(-1, 3, -1, 2)).mean()


IDS = torch.randint(0, 17, (3, 6), generator=torch.Generator().manual_seed(0))
ALL = ("embed", "conv", "image", "gpt", "block.fc", "block.out")
BIASED = ("conv", "image", "gpt", "block.fc")

CASES = {
    "plain": ({}, {}, ALL),
    "rslora": ({"rslora": True}, {"use_rslora": True}, ALL),
    "dora": ({"type": "dora"}, {"use_dora": True}, ALL),
    "dora rslora": (
        {"type": "dora", "rslora": True},
        {"use_dora": True, "use_rslora": True},
        ("gpt", "block.fc"),
    ),
    "bias": ({"bias": True}, {"lora_bias": True}, BIASED),
    "patterns": (
        {"rank_pattern": {"block.fc": 2}, "alpha_pattern": {"gpt": 9.0}},
        {"rank_pattern": {"block.fc": 2}, "alpha_pattern": {"gpt": 9.0}},
        ("gpt", "block.fc", "block.out"),
    ),
    "one rank": ({"rank": 1, "alpha": 0.5}, {"r": 1, "lora_alpha": 0.5}, ALL),
}


def by_peft(net, options, targets):
    """Wrap a copy of ``net`` with PEFT's LoRA, random factors."""
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 5.0, "target_modules": list(targets), **options}
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(net), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = (
                1 + 0.2 * torch.randn_like(parameter) if "magnitude" in name else None
            )
            parameter.data = (
                parameter.data * scale
                if scale is not None
                else 0.2 * torch.randn_like(parameter)
            )
    return model.eval()


def in_mgk(name):
    """Return mgk's name of one of PEFT's parameters: weight/part."""
    module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
    part = {
        "A": "a",
        "B": "b",
        "e": "a" if rest.startswith("embedding_A") else "b",
        "m": "magnitude",
    }[rest[0]]
    return f"{module}.weight/{'bias' if rest.endswith('bias') else part}"


def close(a, b, slack=1.0):
    """Equal to fp32's rounding: eps · inner dimension (42) · layers (7), relative to the 2-norm."""
    return (a - b).norm() <= slack * 1.2e-7 * 42 * 7 * b.norm()


@pytest.mark.parametrize("case", CASES)
def test_forward_gradients_and_merged_weights_are_those_of_peft(case, put_on, tmp_path):
    """Loaded from PEFT's own files, mgk computes what PEFT computes."""
    _, theirs, targets = CASES[case]
    net = Net().eval()
    other = by_peft(net, theirs, targets)
    other.save_pretrained(tmp_path)
    adapter = attach_peft(net, tmp_path, "adapter")
    mine, reference = net(IDS), other(IDS)
    assert close(mine, reference)
    assert not close(mine, Net()(IDS))

    parameters = {n: p for n, p in other.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(reference.square().sum(), list(parameters.values()))
    total = {
        in_mgk(name): gradient
        for name, gradient in zip(parameters, gradients, strict=True)
    }
    names = [
        f"{w}/{n}"
        for w in adapter.targets()
        if "bias" not in w
        for n, _ in adapter.pair(w).named_parameters()
    ]
    own = dict(
        zip(
            names,
            torch.autograd.grad(mine.square().sum(), adapter.parameters()),
            strict=True,
        )
    )
    assert own.keys() == total.keys()
    for name, gradient in own.items():
        # forward and back through all layers, and the square doubles a relative error
        assert close(gradient.flatten(), total[name].flatten(), slack=4), name

    merged = other.merge_and_unload(safe_merge=True).state_dict()
    for name, target in adapter.targets().items():
        weight = adapter.merged_weight(name, target.parameter.detach().clone())
        assert close(weight, merged[name]), name


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_mgk_saves(case, put_on, tmp_path):
    """PeftModel.from_pretrained gives the live output; mgk gets its own state back bit for bit."""
    options, _, targets = CASES[case]
    net = Net().eval()
    adapter = put_on(net, targets=targets, **options)
    shake(adapter, size=0.2)
    live = net(IDS)
    adapter.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # missing or unexpected keys are warnings there
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        warnings.filterwarnings(
            "ignore", message=".*merging LoRA weights won't be possible"
        )
        other = peft.PeftModel.from_pretrained(Net().eval(), tmp_path)
    assert close(other(IDS), live)
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    shake(adapter, seed=7)
    adapter.load(tmp_path)
    assert all(torch.equal(state[k], v) for k, v in adapter.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"rslora": True}], ids=str)
def test_pissa_is_saved_as_a_plain_lora_of_twice_the_rank(options, put_on, tmp_path):
    """On the untouched base PEFT computes what mgk's PiSSA does, and mgk reads its own file back."""
    net = Net().eval()
    adapter = put_on(net, targets=("gpt", "block.*", "embed"), init="pissa", **options)
    shake(adapter)
    live = net(IDS)
    adapter.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 6
    assert close(peft.PeftModel.from_pretrained(Net().eval(), tmp_path)(IDS), live)
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    shake(adapter, seed=7)
    adapter.load(tmp_path)
    assert all(torch.equal(state[k], v) for k, v in adapter.state_dict().items())


def test_attention_is_that_of_peft_but_for_a_delta_that_peft_adds_twice(put_on):
    """PEFT adds out_proj's delta to nn.MultiheadAttention twice; with alpha doubled there mgk equals it."""
    net = Attention(12, 4).eval()
    for parameter in net.parameters():
        parameter.data.mul_(1.5)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    other = by_peft(net, {}, ("mha",))
    adapter = put_on(net, alpha_pattern={"*out_proj": 10.0})
    own = dict(other.named_parameters())
    adapter.load_state_dict({
        f"mha.{weight}/{part}": own[f"base_model.model.mha.{path}lora_{part.upper()}.default.weight"]
        for weight, path in (("in_proj_weight", ""), ("out_proj.weight", "base_layer.out_proj."))
        for part in "ab"
    })  # fmt: skip
    assert close(net(x), other(x))
    assert "twice" in (why_not(adapter) or "")


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"init": "pissa"}], ids=str)
def test_a_rank_above_the_smaller_side_is_cut_and_peft_computes_the_same(
    options, put_on, tmp_path
):
    """The delta keeps the scale of the rank asked for; a note names the weight with both ranks."""
    net = Net().eval()
    adapter = put_on(net, rank=11, alpha=5.0, targets=("block.*",), **options)
    shake(adapter)
    ranks = {name: adapter.factors(name).a.shape[0] for name in adapter.targets()}
    assert ranks == {"block.fc.weight": 9, "block.out.weight": 7}
    scale = 5.0 / (11**0.5 if options.get("rslora") else 11)
    assert adapter.factors("block.out.weight").scale == pytest.approx(scale)
    (note,) = adapter.notes
    assert "2 weights" in note
    assert "block.out.weight (11 → 7)" in note
    live = net(IDS)
    adapter.save(tmp_path)
    assert close(peft.PeftModel.from_pretrained(Net().eval(), tmp_path)(IDS), live)


def test_target_modules_are_short_where_that_is_exact(put_on, tmp_path):
    """Last parts of names where they mean exactly the adapted modules, else a regular expression."""
    net = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"q": nn.Linear(4, 3)}),
            "b": nn.ModuleDict({"q": nn.Linear(4, 3)}),
        }
    )
    for name, targets, expected in (("x", ("q",), ["q"]), ("y", ("a.q",), r"a\.q")):
        adapter = put_on(net, name, targets=targets)
        (tmp_path / name).mkdir()
        save_peft(adapter, tmp_path / name)
        assert (
            json.loads((tmp_path / name / "adapter_config.json").read_text())[
                "target_modules"
            ]
            == expected
        )


def test_what_peft_has_not_is_saved_in_a_format_of_its_own(put_on, tmp_path):
    """Grouped convolutions: save writes the state itself, and load takes it back; save_peft says why not."""
    net = nn.Sequential(nn.Conv1d(6, 9, 3, groups=3))
    adapter = put_on(net)
    shake(adapter)
    assert "grouped" in (why_not(adapter) or "")
    with pytest.raises(InputError, match="grouped"):
        save_peft(adapter, tmp_path)
    adapter.save(tmp_path)
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    shake(adapter, seed=2)
    adapter.load(tmp_path)
    assert all(torch.equal(state[k], v) for k, v in adapter.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa"}, "changed the base"),
        (
            {"use_qalora": True, "bias": "all"},
            "bias = 'all' is not supported; use_qalora = True",
        ),
    ],
)
def test_files_that_mean_something_else_are_refused(change, message, put_on, tmp_path):
    """Everything that would change what the adapter computes is named."""
    adapter = put_on(Net(), targets=("block.fc",))
    adapter.save(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        attach_peft(Net(), tmp_path, "adapter")


def test_a_directory_without_an_adapter_is_refused(tmp_path):
    """The message says which directory."""
    with pytest.raises(InputError, match="not a readable PEFT adapter"):
        attach_peft(Net(), tmp_path, "adapter")
