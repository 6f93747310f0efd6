# SPDX-License-Identifier: Apache-2.0
"""Contexts of text to arrays for the model."""
import numpy as np

from model import RANGE, share_spaces

IGNORE = -100
FIRST_WEIGHT = 3.0  # of an answer's first token: the one that takes a choice


class Encoder:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.base = np.array(share_spaces(tokenizer)[0])
        tokenizer.encode_special_tokens = True  # what texts hold is data, "<|end|>" too
        self.doc, self.ask, self.answer, self.end = (tokenizer.token_to_id('<|%s|>' % x) for x in ('doc', 'ask', 'answer', 'end'))

    def encode(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def document(self, ids):
        return [self.doc] + ids[:RANGE - 2] + [self.end]

    def question(self, ids):
        return [self.ask] + ids + [self.answer]


def stands(base, ids, document):
    """Where tokens stand in a document's, with or without spaces; the last place, as a card's first line is its name."""
    wanted, there = base[ids], base[document]
    for i in range(len(there) - len(wanted), 0, -1):
        if there[i] == wanted[0] and (there[i:i + len(wanted)] == wanted).all():
            return i
    return None


def pack(contexts, encoder, rng, document_loss=0.25):
    """Contexts with as many documents and questions each (those with fewer get empty ones) to one batch of arrays."""
    c = len(contexts)
    d = max(len(x['documents']) for x in contexts)
    asked = max(len(x['questions']) for x in contexts)
    docs = encoder.encode([t for x in contexts for t in x['documents']])
    questions = encoder.encode([q for x in contexts for _, q, *_ in x['questions']])
    answers = encoder.encode([a for x in contexts for _, _, a, *_ in x['questions']])
    docs = [encoder.document(ids) for ids in docs]
    whole = [encoder.question(q) + a + [encoder.end] for q, a in zip(questions, answers)]
    begins = [len(q) + 2 for q in questions]
    n, t = max(map(len, docs)), max(map(len, whole))
    n, t = -(-n // 8) * 8, -(-t // 8) * 8
    tokens, positions, targets, kinds, answer_of, weights = [], [], [], [], [], []
    document_at, question_at, seeking, sought, starts, first_of = [], [], [], [], [], []
    keys, own = np.zeros((c, d, n), bool), np.zeros((c, asked, t), bool)
    i = 0
    for at, x in enumerate(contexts):
        first_of.append(i)
        for j in range(len(x['documents'])):
            ids = docs[i]
            starts.append(len(tokens))
            i += 1
            row = (at * d + j) * n
            document_at.append(np.arange(row, row + len(ids)))
            keys[at, j, :len(ids)] = True
            tokens += ids
            positions.append(np.arange(RANGE - len(ids), RANGE))
            targets.append(np.array(ids[1:] + [IGNORE]))
    targets = np.concatenate(targets)
    skip = rng.random(len(targets)) >= document_loss
    targets[skip] = IGNORE
    split, targets = len(tokens), [targets]
    i = 0
    for at, x in enumerate(contexts):
        for j, (kind, _, _, *where) in enumerate(x['questions']):
            ids, begin = whole[i], begins[i]
            row = (at * asked + j) * t
            question_at.append(np.arange(row, row + len(ids)))
            own[at, j, :len(ids)] = True
            tokens += ids
            positions.append(np.arange(RANGE, RANGE + len(ids)))
            wanted = np.full(len(ids), IGNORE)
            wanted[begin - 1:-1] = ids[begin:]
            targets.append(wanted)
            answer_of.append(np.full(len(ids), i))
            weights.append(np.where(np.arange(len(ids)) == begin - 1, FIRST_WEIGHT, 1.0).astype(np.float32))
            kinds.append(kind)
            if where and where[0] is not None:
                found = stands(encoder.base, ids[begin:-1], docs[first_of[at] + where[0]])
                if found is not None:
                    seeking += range(len(tokens) - len(ids) + begin - 1, len(tokens) - 2)
                    sought += range(starts[first_of[at] + where[0]] + found, starts[first_of[at] + where[0]] + found + len(ids) - 1 - begin)
            i += 1
    return {'shape': (c, d, n, asked, t), 'tokens': np.array(tokens), 'positions': np.concatenate(positions),
            'targets': np.concatenate(targets), 'document_at': np.concatenate(document_at), 'split': split,
            'question_at': np.concatenate(question_at), 'keys': keys, 'own': own,
            'seeking': np.array(seeking, dtype=np.int64), 'sought': np.array(sought, dtype=np.int64),
            'answer_of': np.concatenate(answer_of), 'weights': np.concatenate(weights), 'kinds': kinds}


def mask_of(keys, own):
    """0 where a question's token may look, -inf elsewhere: all real tokens of documents, and what is before it in its
    own question."""
    import torch
    c, asked, t = own.shape
    before = torch.ones(t, t, dtype=torch.bool, device=own.device).tril()
    if keys[0].numel() <= asked * t:  # one row of keys for each question
        docs = keys.reshape(c, 1, 1, 1, -1).expand(c, asked, 1, t, -1).flatten(0, 1)
        inside = before.expand(c * asked, 1, t, t)
    else:
        docs = keys.reshape(c, 1, 1, -1).expand(c, 1, asked * t, -1)
        same = torch.eye(asked, dtype=torch.bool, device=own.device)[:, None, :, None]
        inside = (same & before[None, :, None, :]).reshape(1, 1, asked * t, asked * t).expand(c, 1, -1, -1)
    allowed = torch.cat((docs, inside), -1)
    return torch.zeros(allowed.shape, device=own.device).masked_fill_(~allowed, float('-inf'))


def to_device(batch, device):
    import torch
    moved = {k: torch.as_tensor(v).to(device) for k, v in batch.items() if isinstance(v, np.ndarray)}
    moved['mask'] = mask_of(moved.pop('keys'), moved.pop('own'))
    moved['shape'], moved['kinds'], moved['split'] = batch['shape'], batch['kinds'], batch['split']
    return moved
