# SPDX-License-Identifier: Apache-2.0
"""Contexts of text to arrays for the model."""
import numpy as np

from data import ANYWHERE, END, GIVEN
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


class Looks:
    """Which token of the documents each token of an answer should be told by, as the token before it sees it."""

    def __init__(self, base):
        self.base, self.seeking, self.sought, self.everywhere, self.whole, self.asked_for = base, [], [], [], [], []

    def add(self, look, first, ids, document, start):
        """first: place in the batch of the token before ids; start: of the document's first token."""
        if look == END:
            found, count = len(document) - 1, 1
        else:
            found, count = stands(self.base, ids, document), len(ids)
        if found is not None:
            self.seeking += range(first, first + count)
            self.sought += range(start + found, start + found + count)
            self.everywhere += [look == ANYWHERE] * count
            self.whole += [look == END] * count

    def fitting(self, about):
        """(looks for whole documents, documents): which documents, of whatever context, are what was asked for."""
        return np.array([[kind == k and place in (None, p) for k, p in about] for kind, place in self.asked_for], bool)

    def arrays(self):
        return {'seeking': np.array(self.seeking, np.int64), 'sought': np.array(self.sought, np.int64),
                'everywhere': np.array(self.everywhere, bool), 'whole': np.array(self.whole, bool)}


class Rows:
    """Tokens of all documents, then of all questions, packed without gaps."""

    def __init__(self):
        self.tokens, self.positions, self.targets, self.contexts = [], [], [], []

    def add(self, ids, position, context, begin=1):
        """Those from begin on are to be foretold. Gives the place of the first."""
        self.tokens += ids
        self.positions.append(position + np.arange(len(ids)))
        self.targets.append(np.array([IGNORE] * (begin - 1) + ids[begin:] + [IGNORE]))
        self.contexts.append(np.full(len(ids), context))
        return len(self.tokens) - len(ids)

    def arrays(self):
        return {'tokens': np.array(self.tokens), 'positions': np.concatenate(self.positions),
                'targets': np.concatenate(self.targets), 'contexts': np.concatenate(self.contexts)}


def padded(counts):
    """Places in rows of one length of so many tokens each, and that length."""
    width = -(-max(count for _, count in counts) // 8) * 8
    return np.concatenate([row * width + np.arange(count) for row, count in counts]), width


def pack(contexts, encoder, rng, document_loss=0.25):
    """Contexts, those with fewer documents or questions than others filled up, to one batch of arrays."""
    c, d, asked = len(contexts), *(max(len(x[what]) for x in contexts) for what in ('documents', 'questions'))
    docs = iter(encoder.encode([t for x in contexts for t in x['documents']]))
    questions = iter(encoder.encode([q for x in contexts for _, q, _ in x['questions']]))
    pieces = iter(encoder.encode([t for x in contexts for _, _, a in x['questions'] for t, _ in a]))
    rows, looks, there, document_of = Rows(), Looks(encoder.base), [[] for _ in contexts], []
    document_rows, question_rows, kinds, answer_of, weights = [], [], [], [], []
    for at, x in enumerate(contexts):
        for j, _ in enumerate(x['documents']):
            ids = encoder.document(next(docs))
            document_of.append(np.full(len(ids), len(document_rows)))
            document_rows.append((at * d + j, len(ids)))
            there[at].append((rows.add(ids, RANGE - len(ids), at), ids))
    split = len(rows.tokens)
    for at, x in enumerate(contexts):
        for j, (kind, _, answer) in enumerate(x['questions']):
            ids = encoder.question(next(questions))
            begin = len(ids)
            for (_, look), piece in zip(answer, pieces):
                if look and look[0] == GIVEN:
                    begin += len(piece)
                elif look:
                    start, document = there[at][look[1]]
                    looks.add(look[0], len(rows.tokens) + len(ids) - 1, piece, document, start)
                    looks.asked_for += look[2:]
                ids = ids + piece
            ids.append(encoder.end)
            question_rows.append((at * asked + j, len(ids)))
            rows.add(ids, RANGE, at, begin)
            answer_of.append(np.full(len(ids), len(kinds)))
            weights.append(np.where(np.arange(len(ids)) == begin - 1, FIRST_WEIGHT, 1.0).astype(np.float32))
            kinds.append(kind)
    (document_at, n), (question_at, t) = padded(document_rows), padded(question_rows)
    key_at, w = padded([(at, sum(len(ids) for _, ids in documents)) for at, documents in enumerate(there)])
    keys = np.zeros(c * w, bool)
    keys[key_at] = True
    batch = {'shape': (c, d, n, w, asked, t), 'split': split, 'document_at': document_at, 'question_at': question_at,
             'key_at': key_at, 'keys': keys.reshape(c, 1, w), 'answer_of': np.concatenate(answer_of), 'weights': np.concatenate(weights),
             'kinds': kinds, 'document_of': np.concatenate(document_of),
             'fitting': looks.fitting([a for x in contexts for a in x['about']]), **rows.arrays(), **looks.arrays()}
    batch['targets'][:split][rng.random(split) >= document_loss] = IGNORE
    return batch


def to_device(batch, device):
    import torch
    moved = {k: torch.as_tensor(v).to(device) for k, v in batch.items() if isinstance(v, np.ndarray)}
    there = moved.pop('keys')
    moved['mask'] = torch.zeros(there.shape, device=device).masked_fill_(~there, float('-inf'))
    moved.update((k, batch[k]) for k in ('shape', 'kinds', 'split'))
    return moved
