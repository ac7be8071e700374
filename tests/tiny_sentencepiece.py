"""Tokenizers as SentencePiece's are saved: words begin with a blank, and unknown ones fall back to bytes."""

import json
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

Blank = Literal["normalizer", "always", "first", "never"]
"""Where the tokenizer puts its blank: `normalizer` is Llama-2's and Mistral's file, `first` the later kind of them."""

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
TEXTS = (
    "hello how are you hello world this is how it works what was it good yes no the film was wonderful",
    "刚收到货，质量很好。演员也很棒。 1 2 3 4 10 2026 user assistant system question probe [INST] [/INST]",
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""The shape of Llama-2's conversations: the template's own blanks stand around each answer."""


def build_sentencepiece(
    blank: Blank = "normalizer", kind: Literal["bpe", "unigram"] = "bpe", special: tuple[str, ...] = ()
) -> Any:
    """Learn a tokenizer of blanks and bytes; BOS stands before each text."""
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(_model(kind, blank, bytes_))
    if blank == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=blank, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([] if blank == "never" else [decoders.Strip(" ", 1, 0)])])
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (UNK, BOS, EOS, *special)])
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=UNK, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def _model(kind: str, blank: Blank, bytes_: list[str]) -> Any:
    """A model with byte fallback: its words are learned by one without."""
    learner = Tokenizer(models.BPE(unk_token=UNK) if kind == "bpe" else models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if blank == "normalizer" else blank)
    if kind == "unigram":
        learner.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=150, unk_token=UNK, show_progress=False))
        words = {word: -float(n) for n, word in enumerate(learner.get_vocab()) if word != UNK}
        names = [UNK, BOS, EOS, *bytes_]
        return models.Unigram([(n, 0.0) for n in names] + list(words.items()), unk_id=0, byte_fallback=True)
    learner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=[UNK, BOS, EOS, *bytes_], show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]]
    return models.BPE(vocab=learned["vocab"], merges=merges, unk_token=UNK, fuse_unk=True, byte_fallback=True)


def build_llama(directory: Path, tokenizer: Any) -> Path:
    """Save a Llama with random float32 weights beside a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
