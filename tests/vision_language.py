"""Tiny vision-language models of three families with random weights, their processors made offline, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

FAMILIES = ("llava", "qwen2-vl", "gemma3")

CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}MARK"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} answer: {% endif %}"
)

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def words(tokenizer: Any, *special: str, **named: str) -> Any:
    """A copy of a tokenizer with more special tokens, some of which are its attributes."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), bos_token="<s>", eos_token="</s>",
        pad_token="</s>", extra_special_tokens=named,
    )  # fmt: skip
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def llava(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    own = words(tokenizer, "<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=32, patch_size=8, projection_dim=64),
        text_config=LlamaConfig(**TEXT, vocab_size=len(own)),
        image_token_index=own.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        pictures, own, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT.replace("MARK", "<image>"),
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = words(tokenizer, "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    ids = {
        name: own.convert_tokens_to_ids(name)
        for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    }
    config = Qwen2VLConfig(
        text_config={
            **TEXT, "vocab_size": len(own), "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={
            "embed_dim": 64, "hidden_size": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    pictures = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    return Qwen2VLForConditionalGeneration(config), without_videos(pictures, own)


def without_videos(pictures: Any, tokenizer: Any) -> Any:
    """Qwen2-VL's processor, whose part for videos needs torchvision, without that part."""
    from transformers import Qwen2VLProcessor

    made = object.__new__(Qwen2VLProcessor)
    made.image_processor, made.tokenizer = pictures, tokenizer
    made.chat_template = CHAT.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.image_token_id, made.video_token_id = map(
        tokenizer.convert_tokens_to_ids, (made.image_token, made.video_token)
    )
    return made


def gemma3(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    own = words(tokenizer, boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**TEXT, vocab_size=len(own), head_dim=16, sliding_window=64),
        vision_config=SiglipVisionConfig(**VISION, image_size=32, patch_size=8),
        mm_tokens_per_image=4,
        boi_token_index=own.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=own.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=own.convert_tokens_to_ids("<image_soft_token>"),
    )
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(
        pictures, own, image_seq_length=4, chat_template=CHAT.replace("MARK", "<start_of_image>")
    )
    return Gemma3ForConditionalGeneration(config), processor


MAKERS = {"llava": llava, "qwen2-vl": qwen2_vl, "gemma3": gemma3}


PROCESSORS: dict[str, Any] = {}
"""Of the folders that were saved, for tests where torchvision is not installed."""


def saved(family: str, tokenizer: Any, folder: Path) -> Path:
    """A folder with weights, processor and chat template, as the Hub has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = MAKERS[family](tokenizer)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.data.normal_(std=0.02)  # Gemma 3 begins with a projector of zeros
            if parameter.ndim == 2:
                parameter.data.mul_(4)  # weights large enough that predictions differ
    model.eval().save_pretrained(folder)
    if hasattr(processor, "video_token"):  # a part is missing, so it cannot be saved as a whole
        for part in (processor.image_processor, processor.tokenizer):
            part.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(processor.chat_template)
    else:
        processor.save_pretrained(folder)
    PROCESSORS[str(folder)] = processor
    return folder


def pictures(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """Pictures of coloured blocks, of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    for number in range(count):
        small = torch.randint(256, (4, 5, 3), generator=draw, dtype=torch.uint8).numpy()
        size = (40 + 4 * (number % 3), 36)
        Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(folder / f"{number:03}.png")
    return folder
