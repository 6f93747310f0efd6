# SPDX-License-Identifier: Apache-2.0
"""Makes the tokenizer: byte-level BPE in which a word is cut the same way with and without a space before it.

    python3 tokenizer.py OUT.json [--merges 800]

Merges inside words are learnt by Hugging Face tokenizers on text of data.py, in which a space is a piece of its own.
Then every digit group of 1 to 3 gets a token, and last come merges of a space with a piece that begins words. So " bamboo"
and "bamboo" differ in their first token only, and the model may share what it knows of the two (see model.py).
"""
import argparse
import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import data

SPECIALS = ['<|pad|>', '<|doc|>', '<|ask|>', '<|answer|>', '<|end|>']
PATTERN = r' ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s'
LEARNING = r'\p{L}+|[^\s\p{L}\p{N}]+'  # no space, no digits
SPACE = 'Ġ'


def corpus(contexts, seed):
    rng, texts = random.Random(seed), []
    for i in range(contexts):
        c = data.context(rng, rng.randint(1, 8), ('look', 'which', 'json')[i % 3], 4, rich=rng.random(), styles=('card', 'prose'))
        texts += c['documents'] + [q + ' ' + ''.join(t for t, _ in a) for _, q, a in c['questions']]
    w = data.Words(rng)
    texts += [' '.join(w.new() for _ in range(20)) for _ in range(contexts // 2)]
    return texts


def splitter(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), 'isolated'),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def learn(texts, merges):
    """Merges inside words and runs of punctuation."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = splitter(LEARNING)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    import re
    texts = [re.sub(r'[0-9 \n]+', '\n', t) for t in texts]
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False))
    found = [tuple(m) for m in json.loads(tok.to_str())['model']['merges']]
    return alphabet, [m for m in found if not any('Ċ' in p or SPACE in p for p in m)]


def number_merges():
    digits = '0123456789'
    pairs = [(a, b) for a in digits for b in digits]
    threes = [m for a in digits for b in digits for c in digits for m in ((a + b, c), (a, b + c))]
    return pairs + threes


def build(vocab, merges):
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = splitter(PATTERN)
    tok.decoder = decoders.ByteLevel()
    return tok


def begins_words(texts, vocab, merges, least):
    """Pieces that stand after a space often enough to be worth a token with it."""
    tok, counts = build(vocab, merges), {}
    names = {i: t for t, i in vocab.items()}
    for t in texts:
        ids = tok.encode(t).ids
        for a, b in zip(ids, ids[1:]):
            if names[a] == SPACE and names[b] != SPACE:
                counts[names[b]] = counts.get(names[b], 0) + 1
    return [p for p, n in sorted(counts.items(), key=lambda x: -x[1]) if n >= least and not p.isdigit()]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('out')
    arguments.add_argument('--merges', type=int, default=850)
    arguments.add_argument('--spaced', type=int, default=700)
    arguments.add_argument('--contexts', type=int, default=6000)
    a = arguments.parse_args()
    texts = corpus(a.contexts, 1)
    alphabet, merges = learn(texts, a.merges)
    merges += number_merges()
    vocab = {}
    for token in SPECIALS + alphabet + [x + y for x, y in merges]:
        vocab.setdefault(token, len(vocab))
    numbers = [t for t in vocab if t.isascii() and t.isdigit()]
    spaced = [(SPACE, p) for p in begins_words(texts, vocab, merges, 3)[:a.spaced] + numbers]
    merges += spaced
    for x, y in spaced:
        vocab.setdefault(x + y, len(vocab))
    tok = build(vocab, merges)
    tok.add_special_tokens(SPECIALS)
    tok.save(a.out)
    n = sum(len(tok.encode(t).ids) for t in texts[:3000])
    print('%d tokens in the vocabulary; %.2f characters a token' % (tok.get_vocab_size(), sum(map(len, texts[:3000])) / n))


if __name__ == '__main__':
    main()
