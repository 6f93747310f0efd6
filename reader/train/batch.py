# SPDX-License-Identifier: Apache-2.0
"""Contexts of text to arrays for the model."""
import numpy as np

from data import LOOKS
from model import RANGE, share_spaces

IGNORE = -100


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


def stands(base, ids, document, first):
    """Where tokens stand in a document's first or last, with or without spaces. A value may be part of a name before; a name or kind
    is said again and again, and what comes later is not seen by the first."""
    wanted, there = base[ids], base[document]
    places = range(1, len(there) - len(wanted) + 1)
    for i in places if first else reversed(places):
        if there[i] == wanted[0] and (there[i:i + len(wanted)] == wanted).all():
            return i
    return None


class Seeking:
    """Which token each token of an answer should look at: (place, place sought) in the batch by what is looked for. And, for
    what documents may be of, (place, meaning) of the questions' tokens that ask for it and of the answers' that should tell it."""

    def __init__(self, encoder):
        self.encoder, self.meanings, self.begins = encoder, {}, {}
        self.seek, self.asked, self.alike = ({what: [] for what in LOOKS} for _ in range(3))

    def meaning(self, text):
        return self.meanings.setdefault(text, len(self.meanings))

    def ask(self, asked, place):
        """What a question asks for, by what it is; the question stands from a place on. Gives what -> (text, its last token's place)."""
        out = {}
        for what, (text, begin) in asked.items():
            if begin not in self.begins:
                self.begins[begin] = len(self.encoder.encode([begin])[0])
            out[what] = text, place + self.begins[begin]
            self.asked[what].append((out[what][1], self.meaning(text)))
        return out

    def answer(self, look, place, ids, documents, ends, asked, nothing):
        """One look of a piece of ids. place: of the token before them; documents: (place, ids) of each; ends: last tokens of the pieces
        before; asked: what ask() gave; nothing: the token to look at for what nothing tells."""
        what, where = look
        if what == 'since':
            self.seek['latest'] += [(place + i, ends[where]) for i in range(1, len(ids))]
        elif what in ('text', 'named'):
            start, document = documents[where]
            at = stands(self.encoder.base, ids, document, what == 'named')
            if at is not None:
                self.seek['text'] += [(place + i, start + at + i) for i in range(len(ids))]
        elif what in ('kind', 'place'):
            text, there = asked.get(what, (None, nothing))
            self.seek[what].append((place, there if where == text else nothing))
            if where != '?':
                self.alike[what].append((place, self.meaning(where)))
        elif where is None:
            self.seek[what].append((place, nothing))
        else:
            self.seek[what].append((place, ends[where] if what != 'document' else documents[where][0] + len(documents[where][1]) - 1))

    def arrays(self):
        return {'%s %s' % (name, what): np.array(pairs, np.int64).reshape(-1, 2)
                for name in ('seek', 'asked', 'alike') for what, pairs in getattr(self, name).items()}


class Rows:
    """Tokens of all documents, then of all questions, packed without gaps."""

    def __init__(self):
        self.tokens, self.positions, self.targets = [], [], []

    def add(self, ids, positions, told):
        """told: which are to be foretold. Gives the place of the first."""
        self.tokens += ids
        self.positions.append(positions)
        self.targets.append(np.append(np.where(told, ids, IGNORE)[1:], IGNORE))
        return len(self.tokens) - len(ids)

    def arrays(self):
        return {'tokens': np.array(self.tokens), 'positions': np.concatenate(self.positions),
                'targets': np.concatenate(self.targets)}


def padded(counts):
    """Places in rows of one length of so many tokens each, and that length."""
    width = -(-max(count for _, count in counts) // 8) * 8
    return np.concatenate([row * width + np.arange(count) for row, count in counts]), width


def as_keys(counts, crowds):
    """Of so many tokens of each context's documents: their places as keys of its questions, in rows of one length, and the mask. crowds: how
    many each stands for."""
    at, width = padded(list(enumerate(counts)))
    mask = np.full(len(counts) * width, -np.inf, np.float32)
    mask[at] = np.repeat(np.log(crowds), counts)
    return at, mask.reshape(-1, 1, width)


def sample(rng, begin, count):
    """Some of so many tokens from a place on, and how many of all each stands for."""
    kept = min(count, max(128, count // 8))
    return begin + np.sort(rng.choice(count, kept, replace=False)), count / kept


def lay_out(answer, pieces, question, place, documents, seeking, end):
    """A question and its answer, from a place on: tokens, weight of each in the loss, positions left out before each."""
    ids, weights, gaps, ends = list(question), [0.0] * len(question), [0] * len(question), []
    asked, nothing = seeking.ask(answer.asked, place), place + len(question) - 1
    for piece, new in zip(answer.pieces, pieces):
        for look in piece.looks:
            seeking.answer(look, place + len(ids) - 1, new, documents, ends, asked, nothing)
        ids += new
        weights += [piece.weight] + [min(piece.weight, 1.0)] * (len(new) - 1)
        gaps += [piece.skip] + [0] * (len(new) - 1)
        ends.append(place + len(ids) - 1)
    return ids + [end], np.array(weights + [float(answer.ends)], np.float32), np.array(gaps + [0])


def pack(contexts, encoder, rng, document_loss=0.1):
    """Contexts, those with fewer documents or questions than others filled up, to one batch of arrays."""
    c, d, asked = len(contexts), *(max(len(x[what]) for x in contexts) for what in ('documents', 'questions'))
    docs = iter(encoder.encode([t for x in contexts for t in x['documents']]))
    questions = iter(encoder.encode([q for x in contexts for _, q, _ in x['questions']]))
    pieces = iter(encoder.encode([piece.text for x in contexts for _, _, a in x['questions'] for piece in a.pieces]))
    rows, seeking, there = Rows(), Seeking(encoder), [[] for _ in contexts]
    document_rows, question_rows, kinds, answer_of, weights = [], [], [], [], []
    for at, x in enumerate(contexts):
        for j, _ in enumerate(x['documents']):
            ids = encoder.document(next(docs))
            document_rows.append((at * d + j, len(ids)))
            told = rng.random(len(ids)) < document_loss
            there[at].append((rows.add(ids, np.arange(RANGE - len(ids), RANGE), told), ids))
    split = len(rows.tokens)
    for at, x in enumerate(contexts):
        for j, (kind, _, answer) in enumerate(x['questions']):
            ids, weight, gaps = lay_out(answer, [next(pieces) for _ in answer.pieces], encoder.question(next(questions)),
                                        len(rows.tokens), there[at], seeking, encoder.end)
            question_rows.append((at * asked + j, len(ids)))
            rows.add(ids, RANGE + np.arange(len(ids)) + gaps.cumsum(), weight > 0)
            answer_of.append(np.full(len(ids), len(kinds)))
            weights.append(np.append(weight[1:], 0).astype(np.float32))
            kinds.append(kind)
    (document_at, n), (question_at, t) = padded(document_rows), padded(question_rows)
    counts = [sum(len(ids) for _, ids in documents) for documents in there]
    few, crowds = zip(*(sample(rng, documents[0][0], count) for documents, count in zip(there, counts)))
    key_at, mask = as_keys(counts, [1] * c)
    few_at, few_mask = as_keys([len(tokens) for tokens in few], crowds)
    return {'shape': (c, d, n, mask.shape[2], asked, t), 'split': split, 'document_at': document_at, 'question_at': question_at,
            'key_at': key_at, 'mask': mask, 'few': np.concatenate(few), 'few_at': few_at, 'few_mask': few_mask,
            'answer_of': np.concatenate(answer_of),
            'weights': np.concatenate(weights), 'kinds': kinds, **rows.arrays(), **seeking.arrays()}


def to_device(batch, device):
    import torch
    moved = {k: torch.as_tensor(v).to(device) for k, v in batch.items() if isinstance(v, np.ndarray)}
    moved.update((k, batch[k]) for k in ('shape', 'kinds', 'split', 'task', 'rung', 'at'))
    return moved
