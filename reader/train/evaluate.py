# SPDX-License-Identifier: Apache-2.0
"""Answers held-out questions with a checkpoint, greedily, and counts what is right.

    lodemark text2json make --split test --seed 7 --count 20 --text cards --out held-out.jsonl
    python3 evaluate.py CHECKPOINT.pt held-out.jsonl [--documents 16] [--look-ups] [--predictions OUT.jsonl --gold OUT.jsonl]

--documents N leaves N documents of each sample: those that hold what is asked for, then others. --look-ups asks for each
gold value on its own ("What is the weight of Keldik Z290?"); else the request is answered as a whole, for
`lodemark text2json score --gold GOLD --predictions PREDICTIONS`.
"""
import argparse
import json
import os
import random
import re
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from batch import Encoder
from export import HERE, load
from model import RANGE, rms, rotate, rotation


class Asked:
    """Documents, prefilled once, and questions answered over them one at a time."""

    def __init__(self, model, encoder, documents):
        self.model, self.encoder, self.table = model, encoder, model.table()
        docs = [encoder.document(ids) for ids in encoder.encode(documents)]
        self.keys, self.values = [[] for _ in model.layers], [[] for _ in model.layers]
        self.tokens = sum(map(len, docs))
        docs.sort(key=len)
        for i in range(0, len(docs), 16):
            self.prefill(docs[i:i + 16])
        self.keys = [torch.cat(k) for k in self.keys]
        self.values = [torch.cat(v) for v in self.values]

    def prefill(self, docs):
        n, m = max(map(len, docs)), self.model
        tokens = torch.tensor([t for d in docs for t in d])
        positions = torch.cat([torch.arange(RANGE - len(d), RANGE) for d in docs])
        at = torch.cat([torch.arange(i * n, i * n + len(d)) for i, d in enumerate(docs)])
        x, turn = F.embedding(tokens, self.table), rotation(positions, m.size[4])
        for i, layer in enumerate(m.layers):
            q, k, v = layer.project(x, *turn)
            self.keys[i].append(k)
            self.values[i].append(v)
            q, k, v = (y.new_zeros((len(docs) * n,) + y.shape[1:]).index_copy(0, at, y).view(len(docs), n, -1, layer.dim).transpose(1, 2)
                       for y in (q, k, v))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = layer.finish(x, a.transpose(1, 2).reshape(len(docs) * n, -1)[at])

    def step(self, own, tokens, begin):
        """Some tokens after those in own; what comes next."""
        m = self.model
        x = F.embedding(torch.tensor(tokens), self.table)
        turn = rotation(torch.arange(RANGE + begin, RANGE + begin + len(tokens)), m.size[4])
        for i, layer in enumerate(m.layers):
            q, k, v = layer.project(x, *turn)
            own[i] = (k, v) if own[i] is None else (torch.cat((own[i][0], k)), torch.cat((own[i][1], v)))
            ks, vs = torch.cat((self.keys[i], own[i][0])), torch.cat((self.values[i], own[i][1]))
            mask = torch.ones(len(tokens), ks.shape[0], dtype=torch.bool).tril(ks.shape[0] - len(tokens))
            a = F.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in (q, ks, vs)), attn_mask=mask, enable_gqa=True)
            x = layer.finish(x, a[0].transpose(0, 1).reshape(len(tokens), -1))
        return int((rms(x[-1], m.norm) @ self.table.T).argmax())

    def answer(self, question, most):
        own, tokens, out = [None] * len(self.model.layers), self.encoder.question(self.encoder.encode([question])[0]), []
        begin = 0
        while len(out) < most:
            new = self.step(own, tokens, begin)
            if new == self.encoder.end:
                break
            begin += len(tokens)
            tokens = [new]
            out.append(new)
        return self.encoder.tokenizer.decode(out, skip_special_tokens=False)


def cut(problem):
    """The documents of a problem and its request."""
    body, asked = problem.split('\nRequest: ')
    docs = re.split(r'^(?=Document \d+$)', body, flags=re.M)[1:]
    return [d.strip() for d in docs], 'Request: ' + asked.strip()


def keep(documents, items, most, rng):
    """That many documents: all that name one of the items, then others. The items may have to be fewer, as well."""
    if not most or most >= len(documents):
        return documents, items
    kept, left = [], []
    for x in items:
        named = [i for i, d in enumerate(documents) if x['name'] in d and i not in kept]
        if len(kept) + len(named) <= most:
            kept, left = kept + named, left + [x]
    others = [i for i, d in enumerate(documents) if i not in kept and not any(x['name'] in d for x in items)]
    rng.shuffle(others)
    return [documents[i] for i in sorted(kept + others[:most - len(kept)])], left


def labels():
    return {a['key']: a['label'].lower() for d in data.TABLES['domains'] for a in d['attributes']}


def main():
    p = argparse.ArgumentParser()
    p.add_argument('checkpoint')
    p.add_argument('samples')
    p.add_argument('--tokenizer', default=os.path.join(HERE, '..', 'model', 'tokenizer.json'))
    p.add_argument('--documents', type=int, default=0)
    p.add_argument('--look-ups', action='store_true')
    p.add_argument('--count', type=int, default=1000)
    p.add_argument('--items', type=int, default=6, help='most items of a sample whose values are asked for')
    p.add_argument('--predictions')
    p.add_argument('--gold')
    p.add_argument('--show', type=int, default=0)
    p.add_argument('--json', action='store_true')
    a = p.parse_args()
    tokenizer = Tokenizer.from_file(a.tokenizer)
    model, _ = load(a.checkpoint, tokenizer)
    encoder, rng, begin = Encoder(tokenizer), random.Random(1), time.time()
    right = asked = tokens = documents_seen = samples = 0
    predictions, gold = [], []
    with torch.no_grad():
        for line in list(open(a.samples))[:a.count]:
            sample = json.loads(line)
            documents, request = cut(sample['problem'])
            items = json.loads(sample['answer'])
            documents, items = keep(documents, items[:a.items] if a.look_ups else items, a.documents, rng)
            over = Asked(model, encoder, documents)
            tokens, documents_seen, samples = tokens + over.tokens, documents_seen + len(documents), samples + 1
            questions = [(request, None)]
            if a.look_ups:
                questions = [('What is the %s of %s?' % (labels()[k], x['name']), v) for x in items for k, v in x.items() if k != 'name']
            for question, value in questions:
                got = over.answer(question, 24 if a.look_ups else 6000)
                asked += 1
                right += got == value
                if a.show >= asked:
                    print(question, '\n  got:', got, '\n  gold:', value or items, flush=True)
                if not a.look_ups:
                    predictions.append({'prediction': got})
                    gold.append({**sample, 'answer': json.dumps(items, ensure_ascii=False)})
    for path, rows in ((a.predictions, predictions), (a.gold, gold)):
        if path:
            with open(path, 'w') as out:
                out.writelines(json.dumps(x, ensure_ascii=False) + '\n' for x in rows)
    result = {'samples': samples, 'documents': round(documents_seen / samples, 1), 'tokens': tokens // samples, 'questions': asked,
              'seconds': round(time.time() - begin, 1)}
    if a.look_ups:
        result['right'] = round(100 * right / asked, 1)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
