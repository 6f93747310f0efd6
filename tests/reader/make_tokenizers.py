#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make tests/vectors/reader: small tokenizers as Hugging Face `tokenizers` writes them, texts, and their token ids.

usage: make_tokenizers.py [FOLDER]        needs the package tokenizers; what is in the tree was made by 0.23.3

Each is trained on the text below with the pre-tokenizer, normalizer and template of a family of models.
"""
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TRAINING = """
The keeper of the hall lists the price of every lamp, and the town keeps the list. It's 12 coins, isn't it? They've said
that they'll pay 1250 in the end; we're told he'd rather pay 300. The end of the list is the end of the day.
Der Preis der Lampe ist höher als der Preis des Öls. Le prix de la lampe est plus élevé que celui de l'été dernier.
Цена лампы выше, чем цена масла. Цена масла ниже. 灯的价格比油的价格高。油的价格低。ランプの値段は油の値段より高い。
{"name": "Ann", "price": "12", "town": "Elmford"}, {"name": "Bob", "price": "30", "town": "Oakham"}
for (int i = 0; i < count; i++)
    if (list[i].price > price)
        price = list[i].price;

| name | price |
| ---- | ----- |
| Ann  | 12    |
"""

TEXTS = [
    "", " ", "\n", "a", "The keeper's list is IN the hall.", "it's IT'S It'S they'LL he'd we'VE 's 't",
    "isn't  it?   no\n\n\nyes \n \n  end", "   ", " \t\n ", "x\r\ny\r\n\r\nz \r", "1 12 123 1234 12345 1.5 1,000,000 a1b22c333",
    "price: $12.50!!! (really?) -> [yes]... --- ***", "tabs\t\tand\u00a0no-break\u2003em\u3000ideographic\u200bzero width",
    "höher Öl élevé naïve Straße", "e\u0301le\u0301ve\u0301 o\u0308l A\u030a \u1100\u1161\u11a8 \u212b \ufb01 \u0340",
    "Цена лампы выше. Ёлка й и\u0306", "灯的价格比油的价格高。ランプの値段", "שלום עולם مرحبا بالعالم", "नमस्ते दुनिया ไทยภาษา",
    "😀 👩‍👩‍👧‍👦 🇩🇪 ☃️ e\u20dd", "Ⅷ ½ ² ٣٤ १२३ 百万", "\u180e a\u180eb \u0085 c\u2028d\u2029e", "ſ 'ſ K'K ß",
    "<|begin|>text<|end|> and <|end|><|tool|>x<tool>y", "<|end", "<|en<|end|>|>", "<|begin|><|begin_of|>",
    "for (int i = 0; i < count; i++)\n    if (list[i].price > price)\n\t\tprice = list[i].price;\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethepricepricelistlistendendend" * 8, "\u0000\u0001\u007f\u00ad",
]

LETTERS = list("abcdetThpr'sE012 \n\t.,-|<>\"{}") + list("  \n\u00a0éöüЦенав灯価高ラה़ م😀\u0301\u0308\u200d\r\u0085'")


def random_texts(count):
    rng = random.Random(7)
    return ["".join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 60))) for _ in range(count)]


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(pre_tokenizer, normalizer, size):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TRAINING.splitlines(keepends=True), trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def special(text, normalized=False, is_special=True):
    return AddedToken(text, special=is_special, normalized=normalized)


def llama3():
    file = json.loads(train(split(LLAMA3), None, 400).to_str())
    for word in ("Ġkeepers", "1234", "Oakham"):  # tokens that no merge leads to
        file["model"]["vocab"][word] = len(file["model"]["vocab"])
    file["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.add_special_tokens([special(t) for t in ("<|begin|>", "<|end|>", "<|begin_of|>", "<|tool|>")])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1",
                                      special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))])])
    return json.loads(tokenizer.to_str())


def qwen():
    tokenizer = train(split(QWEN), normalizers.NFC(), 400)
    tokenizer.add_special_tokens([special("<|begin|>"), special("<|end|>")])
    tokenizer.add_tokens([special("<tool>", is_special=False), special("<|tool|>", True, False),
                          special("é<|o\u0308", True, False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return json.loads(tokenizer.to_str())


def gpt2():
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False), None, 380)
    file = json.loads(tokenizer.to_str())
    # as files of before 2023 are: merges are texts, no type, the added token in the vocabulary too
    file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
    del file["model"]["type"]
    size = len(file["model"]["vocab"])
    file["model"]["vocab"]["<|end|>"] = size
    file["added_tokens"] = [{"id": size, "special": True, "content": "<|end|>", "single_word": False, "lstrip": False,
                             "rstrip": False, "normalized": True}]
    file["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    return file


def pieces():
    """Three cuts, of all kinds."""
    stages = [pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[一-龥]+"), behavior="isolated", invert=False),
              pre_tokenizers.Split("--", behavior="removed", invert=False),
              pre_tokenizers.Split(Regex(r"(?>\p{L}++|[^\s\p{L}]?+\s*+|\S)(?=[^,]|)"), behavior="removed", invert=True),
              pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    return json.loads(train(pre_tokenizers.Sequence(stages), None, 330).to_str())


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                          pathlib.Path(__file__).parent.parent / "vectors" / "reader")
    texts = TEXTS + random_texts(40)
    vectors = {"texts": texts}
    for make in (llama3, qwen, gpt2, pieces):
        name = make.__name__
        (folder / name).mkdir(parents=True, exist_ok=True)
        file = make()
        text = json.dumps(file, ensure_ascii=False, separators=(",", ":"))
        (folder / name / "tokenizer.json").write_text(text + "\n")
        plain = Tokenizer.from_str(json.dumps(dict(file, added_tokens=[], post_processor=None)))
        whole = Tokenizer.from_str(text)
        ids = [[reader.encode(t, add_special_tokens=False).ids for t in texts] for reader in (whole, plain)]
        # [as they are, with added tokens as text unless that is the same]
        vectors[name] = [[a] if a == b else [a, b] for a, b in zip(*ids)]
    text = json.dumps(vectors, separators=(",", ":")).replace("]],[[", "]],\n[[").replace("\",\"", "\",\n\"")
    (folder / "tokens.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
