"""A tiny random Gemma 3 that sees pictures, saved with a processor as MedGemma is."""

import torch

from mgk_hf.tiny import tiny_config, tiny_tokenizer

TEXTS = (
    "이 사진은 어느 조직인가요? 지방 조직이다. 점막이다. 종양이다.",
    "What is the tissue type shown in this histology picture? adipose, mucus, tumor",
)
TURNS = ("<start_of_turn>", "<end_of_turn>")
IMAGE = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PER_PICTURE = 4


def save_tiny_medgemma(path, seed=0):
    """Write model, tokenizer and processor; return the path as text."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import (
        Gemma3ImageProcessorPil,
    )
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    tokenizer = tiny_tokenizer(TEXTS, 320)
    special = {"boi_token": IMAGE[0], "image_token": IMAGE[1], "eoi_token": IMAGE[2]}
    tokenizer.add_special_tokens({"additional_special_tokens": [*TURNS, *IMAGE]})
    tokenizer.init_kwargs["extra_special_tokens"] = special
    tokenizer._set_model_specific_special_tokens(special)
    tokenizer.chat_template = TEMPLATE
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
    }  # fmt: skip
    ids = [tokenizer.convert_tokens_to_ids(token) for token in IMAGE]
    config = Gemma3Config(
        text_config=tiny_config(len(tokenizer), sliding_window=9).to_dict(),
        vision_config=vision, mm_tokens_per_image=PER_PICTURE,
        boi_token_index=ids[0], image_token_index=ids[1], eoi_token_index=ids[2],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3ForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(3)
            elif not parameter.any():
                parameter.data.normal_(std=0.1)
    model.save_pretrained(path)
    seen = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    processor = Gemma3Processor(
        seen, tokenizer, chat_template=TEMPLATE, image_seq_length=PER_PICTURE
    )
    processor.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def draw(path, shade):
    """Draw a small picture: a disk of one shade on another."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (40, 32), (shade, 90, 200 - shade))
    ImageDraw.Draw(image).ellipse((6, 6, 26, 26), fill=(250 - shade, shade, 40))
    image.save(path)
