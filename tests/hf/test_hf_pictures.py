"""Chats with pictures on a tiny Gemma 3 with a vision tower: as transformers processes, learns and loads them."""

import json

import pytest
import torch

pytest.importorskip("PIL", reason="pip install 'mgk[vision]'")

from tiny_medgemma import PER_PICTURE, draw, save_tiny_medgemma

from mgk_core.contract.errors import DataError, InputError
from mgk_core.run.runner import run_pipeline
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_text.generation import evaluate
from mgk_text.load import load
from mgk_text.specs import SPECS
from mgk_validation.losses import perplexity

ASK = "What is the tissue type shown in this histology picture?"
ANSWERS = ("adipose", "mucus", "tumor", "adipose")
CONFIG = """
name = "pictures"
[base]
type = "hf"
compute = "float32"
head = "exact"
[run]
threads = 1
[defaults]
optimizer = {type = "adamw", lr = 0.01}
train = {steps = 3, batch_size = 2}
adapter = {type = "lora", rank = 2, alpha = 6, targets = ["all-linear"]}
[phases.tissue.data]
type = "image-chat"
generate = 2
new_tokens = 8
"""


def row(content, answer):
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    }


def rows():
    """Rows whose messages name their pictures; the last one shows two."""
    made = []
    for i, answer in enumerate(ANSWERS):
        shown = [{"type": "image", "image": f"{i}.png"}]
        if i == 3:
            shown.append({"type": "image", "image": "0.png"})
        made.append(row([*shown, {"type": "text", "text": ASK}], answer))
    return made


def write(path, content):
    text = "\n".join(json.dumps(one, ensure_ascii=False) for one in content)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        draw(path / f"{i}.png", 40 * i + 20)
    write(path / "train.jsonl", rows())
    (path / "pictures.toml").write_text(CONFIG, encoding="utf-8")
    save_tiny_medgemma(path / "base")
    return path


@pytest.fixture(scope="module")
def bundle(folder):
    spec = HfSpec(type="hf", id=str(folder / "base"), compute="float32", head="exact")
    return build(spec, torch.device("cpu"))


def data(bundle, file, **options):
    spec = SPECS["image-chat"](
        type="image-chat", train=str(file), cache=False, **options
    )
    return load(spec, bundle)


def processed(folder, base):
    """Return transformers' own processed batch of the rows, and its labels."""
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(str(base))
    chats = [one["messages"] for one in rows()]
    # An example ends with the token that ends a turn; the template puts a line break behind it.
    texts = [
        processor.apply_chat_template(c, tokenize=False).removesuffix("\n")
        for c in chats
    ]
    names = [
        [p["image"] for p in c[0]["content"] if p["type"] == "image"] for c in chats
    ]
    images = [
        [Image.open(folder / n).convert("RGB") for n in several] for several in names
    ]
    return processor(
        text=texts, images=images, return_tensors="pt", padding=True,
        padding_side="right", add_special_tokens=False,
    )  # fmt: skip


def test_ids_and_loss_are_those_of_transformers(folder, bundle):
    """The batch is the processor's own, and its loss is transformers' on the same labels."""
    found = data(bundle, folder / "train.jsonl")
    batch = found.train.batch(range(4))
    theirs = processed(folder, folder / "base")
    assert batch.input_ids.tolist() == theirs["input_ids"].tolist()
    assert batch.soft.tolist() == theirs["token_type_ids"].tolist()
    assert torch.equal(batch.pixel_values, theirs["pixel_values"])
    image = bundle.eyes.token
    assert (theirs["input_ids"] == image).sum() == 5 * PER_PICTURE
    assert (batch.labels[batch.input_ids == image] == -100).all()
    learnt = [
        bundle.tokenizer.decode([i for i in one if i != -100])
        for one in batch.labels.tolist()
    ]
    assert [text.split("<end_of_turn>")[0] for text in learnt] == list(ANSWERS)
    total, count = bundle.loss(batch)
    with torch.no_grad():
        loss = bundle.model(**theirs, labels=batch.labels).loss
    assert float(total / count) == pytest.approx(float(loss), rel=1e-5)


def test_the_column_of_pictures_gives_the_same_batch(folder, bundle):
    """Parts without a file take the pictures of the row's column, as TRL's data sets have them."""
    made = []
    for one in rows():
        content = one["messages"][0]["content"]
        images = [part.pop("image") for part in content if part["type"] == "image"]
        made.append({**one, "images": images})
    write(folder / "column.jsonl", made)
    one = data(bundle, folder / "train.jsonl").train
    other = data(bundle, folder / "column.jsonl").train
    assert one.digest == other.digest
    assert torch.equal(one.batch([3]).pixel_values, other.batch([3]).pixel_values)


def test_a_changed_picture_changes_the_digest(folder, bundle, tmp_path):
    """What a run is of includes the pictures' bytes, not only their names."""
    for i in range(4):
        draw(tmp_path / f"{i}.png", 40 * i + 20)
    write(tmp_path / "train.jsonl", rows())
    before = data(bundle, tmp_path / "train.jsonl").train.digest
    assert before == data(bundle, folder / "train.jsonl").train.digest
    draw(tmp_path / "2.png", 7)
    assert data(bundle, tmp_path / "train.jsonl").train.digest != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", ["none.png", "no such picture"]),
        ("broken", ["cut.png", "cannot be read"]),
        ("text", ["train.png", "not a picture"]),
        ("unnamed", ["names no picture"]),
        ("unshown", ["images", "2 pictures"]),
    ],
)
def test_a_bad_picture_is_named_with_its_row(folder, bundle, tmp_path, change, words):
    """A missing, cut or foreign file is an error with file, line and part, before training."""
    draw(tmp_path / "a.png", 50)
    cut = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "train.png").write_text("no picture")
    names = {"missing": "none.png", "broken": "cut.png", "text": "train.png"}
    part = {"type": "image", "image": names.get(change, "a.png")}
    bad = row([part, {"type": "text", "text": ASK}], "mucus")
    if change == "unnamed":
        bad = row([{"type": "image"}, {"type": "text", "text": ASK}], "mucus")
    if change == "unshown":
        bad = {**row([{"type": "image"}], "mucus"), "images": ["a.png", "a.png"]}
    good = row([{"type": "image", "image": "a.png"}], "tumor")
    file = write(tmp_path / "bad.jsonl", [good, bad])
    with pytest.raises(DataError) as caught:
        data(bundle, file)
    assert all(word in str(caught.value) for word in ["bad.jsonl:2", *words])


def test_a_base_without_eyes_is_refused(folder):
    """On a language model alone, data with pictures are an error that says what is needed."""
    plain = build(HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu"))
    with pytest.raises(InputError, match="processor"):
        data(plain, folder / "train.jsonl")


def test_probes_look_at_the_pictures(folder, bundle):
    """Perplexity and generated answers are those of transformers with the same pictures."""
    found = data(
        bundle, folder / "train.jsonl", test=str(folder / "train.jsonl"),
        generate=2, new_tokens=8,
    )  # fmt: skip
    probes = {p.name: p for p in found.probes}
    score = perplexity(bundle, probes["image-chat"])
    losses = [bundle.loss(found.train.batch([i])) for i in range(4)]
    total = sum(float(s) for s, _ in losses) / sum(float(c) for _, c in losses)
    assert score.extra["nll"] == pytest.approx(total, rel=1e-5)
    asked = probes["image-chat-generated"].items
    answers = [a.text for a in evaluate(bundle, probes["image-chat-generated"]).answers]
    for item, answer in zip(asked, answers, strict=True):
        ids = torch.tensor([item.ids])
        made = bundle.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            token_type_ids=(ids == bundle.eyes.token).long(),
            pixel_values=bundle.eyes.pixels([item.prompt]), do_sample=False,
            max_new_tokens=8, eos_token_id=list(bundle.conversation.stops),
        )  # fmt: skip
        text = bundle.tokenizer.decode(
            made[0, len(item.ids) :], skip_special_tokens=True
        )
        assert answer.strip() == text.strip()


def test_a_run_learns_from_pictures_and_its_model_loads(folder):
    """run → merge → RUN/model: transformers loads it with its processor and gives the merged logits."""
    from transformers import AutoModelForImageTextToText

    sets = {
        "base.id": str(folder / "base"),
        "phases.tissue.data.train": str(folder / "train.jsonl"),
        "phases.tissue.data.test": str(folder / "train.jsonl"),
    }
    run_pipeline(
        None, out=folder / "run", config=folder / "pictures.toml", overrides=sets
    )
    theirs = AutoModelForImageTextToText.from_pretrained(
        folder / "run" / "model", dtype=torch.float32
    ).eval()
    batch = processed(folder, folder / "run" / "model")
    again = build(
        HfSpec(
            type="hf", id=str(folder / "run" / "model"), compute="float32", head="exact"
        ),
        torch.device("cpu"),
    )
    ours = data(again, folder / "train.jsonl").train.batch(range(4))
    with torch.no_grad():
        logits = theirs(**batch).logits.flatten(0, 1)
        mine = again.outputs(ours, torch.arange(len(logits)))
        valid = batch["attention_mask"].flatten().bool()
        # fp32 sums in another order, on logits of this size.
        tolerance = 1e-5 * float(logits.abs().max())
        assert (logits - mine)[valid].abs().max() < tolerance
    table = json.loads((folder / "run" / "retention.json").read_text())
    first, last = (row[0] for row in table["R"][:: len(table["R"]) - 1])
    assert last < first
