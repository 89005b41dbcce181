"""A tiny encoder that is made here, and text about several subjects: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
#: The words of the tiny encoder's tokenizer; no other word is in its texts.
WORDS = [first + second for first in _SYLLABLES for second in _SYLLABLES[:20]]


def make_encoder(folder: Path, width: int = 768, layers: int = 1) -> Path:
    """Saves a random BERT of few layers as sentence-transformers do."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]))
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    size |= {"intermediate_size": 64, "vocab_size": len(WORDS) + 6, "max_position_embeddings": 128}
    bert = folder / "bert"
    network = BertModel(BertConfig(**size))
    with torch.no_grad():  # what is the same in every text would make all vectors alike
        network.embeddings.position_embeddings.weight *= 0.05
        network.embeddings.token_type_embeddings.weight *= 0.05
    network.save_pretrained(bert)
    BertTokenizer(str(vocabulary)).save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=96)
    model = SentenceTransformer(modules=[transformer, Pooling(width, pooling_mode="mean")], device="cpu")
    model.save(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


def document(subject: int, seed: int, sentences: int) -> str:
    """A text whose words drift: those of a sentence are near those of the one before, and of its subject."""
    draw, place = np.random.default_rng([subject, seed]), 0.0
    lines = []
    for _ in range(sentences):
        place += draw.normal(0, 25)
        near = (150 * subject + place + draw.normal(0, 20, size=22)).astype(int) % len(WORDS)
        lines.append(" ".join(WORDS[i] for i in near).capitalize() + ".")
    return "\n\n".join(lines)


def write_documents(folder: Path, subjects: int, each: int, sentences: int) -> Path:
    """Writes a folder of text files, a folder in it for each subject."""
    for subject in range(subjects):
        for seed in range(each):
            path = folder / f"subject{subject}" / f"{seed:03}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document(subject, seed, sentences))
    return folder
