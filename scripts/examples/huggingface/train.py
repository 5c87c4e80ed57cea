"""A text classifier with Hugging Face transformers: a tiny model and its tokenizer, made on the spot, nothing downloaded.

optml train --image huggingface --entry-point train.py --source-dir scripts/examples/huggingface -p epochs=3
"""

import argparse
import itertools
import os
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SUBJECTS = ["the film", "this book", "her song", "that game", "the dinner", "his talk"]
VERBS = ["was", "is", "seemed", "felt"]
WORDS = {0: ["dull", "awful", "slow", "broken", "bad"], 1: ["bright", "lovely", "quick", "clever", "good"]}


def sentences() -> list[tuple[str, int]]:
    """Every sentence that these words make, with 1 for praise."""
    words = [(word, label) for label in WORDS for word in WORDS[label]]
    made = itertools.product(SUBJECTS, VERBS, ["very", "rather", "quite"], words)
    listed = [(f"{subject} {verb} {how} {word}", label) for subject, verb, how, (word, label) in made]
    random.Random(0).shuffle(listed)
    return listed


def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", *sorted({word for text in texts for word in text.split()})]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = sentences()
    tokenizer = tokenizer_for([text for text, _ in data])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)
    encoded = tokenizer([text for text, _ in data], padding=True, return_tensors="pt")
    labels = torch.tensor([label for _, label in data])
    training = len(data) * 4 // 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    for epoch in range(options.epochs):
        model.train()
        for begin in range(0, training, 32):
            rows = slice(begin, min(begin + 32, training))
            loss = model(encoded.input_ids[rows], encoded.attention_mask[rows], labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            scores = model(encoded.input_ids[training:], encoded.attention_mask[training:]).logits
        print(
            f"epoch={epoch + 1} loss={loss.item():.4f} accuracy={(scores.argmax(1) == labels[training:]).float().mean():.4f}"
        )
    model.save_pretrained(os.environ["SM_MODEL_DIR"])
    tokenizer.save_pretrained(os.environ["SM_MODEL_DIR"])


if __name__ == "__main__":
    main()
