# SPDX-License-Identifier: Apache-2.0
"""Trains the reader's model. See README.md.

    python3 train.py --out FOLDER --minutes 90 [--size cpu|gpu] [--device auto]

Stops after so many minutes of training in all, over restarts too: run it again with the same folder to go on.
"""
import argparse
import json
import math
import multiprocessing
import os
import pickle
import queue as queues
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer

import data
from batch import IGNORE, Encoder, pack, to_device
from export import read_back
from model import SIZES, Layer, Reader, products, share_spaces
from muon import Muon

HERE = os.path.dirname(os.path.abspath(__file__))
LADDER = [1, 2, 3, 4, 6, 9, 13, 18, 25, 35, 50, 70, 100, 140, 200, 280]
SHOWN = 512  # looks of a batch, at most, that a group of heads of a layer is shown
PRODUCTS = 8e6  # of tokens of a context's questions and of what they see, about, at most
CROWD = 6  # times the batch's documents is what a look is to be found among
TASKS = ('look', 'find', 'list')
WALKED = {'look': (0,), 'find': (13, 13, 13, 100), 'list': (8, 100, 100)}  # documents of a first line, at most


# ------------------------------------------------------------ making batches

def draw_task(rng, rungs, shares):
    return rng.choices(TASKS, shares)[0] if rungs[0] >= 1 else 'look'


def rich_of(rng, rung):
    """Documents grow with the ladder; all lengths stay in the mix."""
    most = min(1.0, 0.1 * max(0, rung - 4))
    return rng.random() * most


def make_batch(rng, encoder, pieces, rungs, a):
    task = draw_task(rng, rungs, a.shares)
    rung = rungs[TASKS.index(task)]
    at = rung if rng.random() < 0.75 else rng.randint(0, rung)
    n = LADDER[at]
    rich = rich_of(rng, rung)
    styles = ('card', 'card', 'prose') if rung < 5 else ('card', 'prose', 'mixed')
    near = 0.0 if rung < 3 else 0.15
    if rung >= 3 and rng.random() < 0.4:  # fewer documents, but as long and as much alike as those of text2json make
        n, rich, near, styles = LADDER[rng.randint(1, max(2, at - 2))], rng.random(), 0.3, ('card', 'prose', 'prose')
        at = -1
    if task != 'look' and rung >= 3 and rng.random() < a.crowded:  # so many that most are left out of an answer
        n, at = rng.choice([n for n in LADDER[5:] if n <= a.many]), -1
        rich = min(rich, 0.5 * a.tokens / n / 70)
    walked = min(n, rng.choice(WALKED[task]))
    documents, question = n * (45 + 70 * rich), {'look': 40, 'find': 40 + 8 * walked, 'list': 150 + 22 * walked}[task]
    questions = {'look': 8 + min(16, n // 4), 'find': 8 + min(8, n // 4), 'list': 4 + min(4, n // 8)}[task]
    questions = max(2, min(questions, int(PRODUCTS / (documents + question) / question)))
    tokens = documents + questions * question
    numbers = data.Numbers(rng)
    contexts = [data.context(rng, n, task, numbers, questions, pieces, rich, styles, near, walked)
                for _ in range(max(1, min(int(a.tokens / tokens), 600 // n)))]
    batch = pack(contexts, encoder, np.random.default_rng(rng.getrandbits(32)))
    batch['task'], batch['rung'], batch['at'] = task, rung, at
    return batch


def producer(queue, rungs, seed, a):
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(a.tokenizer)
    pieces = sorted(t for t in tokenizer.get_vocab() if t.isascii() and t.isalpha() and t.islower() and 1 < len(t) < 6)
    encoder = Encoder(tokenizer)
    parent = os.getppid()
    while os.getppid() == parent:  # a training that was killed takes its makers of data along
        batch = make_batch(rng, encoder, pieces, list(rungs), a)
        while os.getppid() == parent:
            try:
                queue.put(batch, timeout=5)
                break
            except queues.Full:
                pass
    queue.cancel_join_thread()


# ------------------------------------------------------------------ training

def seeking_heads(size):
    """What is looked for: [(layer, first query head, last)] that are shown where it stands."""
    _, layers, heads, kv = size[:4]
    half, group = layers // 2, heads // kv
    return {'text': [(half, 0, group), (half + 1, 0, group)], 'document': [(half, group, 2 * group)],
            'kind': [(half + 1, group, group + 1)], 'place': [(half + 1, 2 * group - 1, 2 * group)], 'next': [(half, group, 2 * group)],
            'latest': [(half - 1, 2 * group - 1, 2 * group)]}


def shown(rows):
    return rows[torch.randperm(len(rows), device=rows.device)[:SHOWN]]


def scores_of(looked, where, seeking, sought):
    """Of some tokens' queries, by the heads of a layer, over some tokens' keys: (queries, heads, keys)."""
    layer, first, last = where
    q, k = looked[layer]
    queries = q[seeking, first:last]
    keys = k[sought, first // (q.shape[1] // k.shape[1])]
    return products(q.new_zeros(()), queries.flatten(0, 1)[None], keys[None]).view(queries.shape[0], last - first, -1)


def seek_loss(looked, batch, what, where):
    """How far heads of a layer are from looking at the token that tells what is written next, among all documents of the
    batch and, but for texts, among what they see of their own question and answer. And the share of looks that are right."""
    pairs, split, count = batch['seek ' + what], batch['split'], len(batch['tokens'])
    if not len(pairs):
        return None
    seeking, wanted = shown(pairs).T
    scores = scores_of(looked, where, seeking, slice(split if what == 'text' else count))
    if what != 'text':
        own = torch.arange(split, count, device=wanted.device)
        hidden = (batch['answer_of'][seeking - split][:, None] != batch['answer_of']) | (own > seeking[:, None])
        scores[:, :, split:].masked_fill_(hidden[:, None], float('-inf'))
    wanted = wanted[:, None].expand(scores.shape[:2])
    found = (scores.argmax(-1) == wanted).float().mean().item()
    crowded = torch.cat((scores[:, :, :split] + math.log(CROWD), scores[:, :, split:]), -1)
    crowded = crowded.scatter(-1, wanted[..., None], scores.gather(-1, wanted[..., None]))
    return F.cross_entropy(crowded.flatten(0, 1), wanted.flatten()), found


def alike_loss(looked, batch, what, where):
    """How far what documents are of is from being told among all that the batch's questions ask for: from many wrong ones more is
    learnt than from whether it is the own question's. And the share that is told."""
    asked, alike = batch['asked ' + what], batch['alike ' + what]
    same = alike[:, None, 1] == asked[None, :, 1]
    kept = (same.any(-1) & ~same.all(-1)).nonzero()[:, 0]
    if not len(kept):
        return None
    kept = shown(kept)
    logs, same = scores_of(looked, where, alike[kept, 0], asked[:, 0]).log_softmax(-1), same[kept][:, None]
    found = same.expand_as(logs).gather(-1, logs.argmax(-1, keepdim=True)).float().mean().item()
    return -logs.masked_fill(~same, float('-inf')).logsumexp(-1).mean(), found


def looks_loss(model, batch):
    """All of these, added up; what is found goes to batch['found']."""
    total = 0.0
    for what, heads in seeking_heads(model.size).items():
        lost = [('found', seek_loss(model.looked, batch, what, where)) for where in heads]
        if what in ('kind', 'place'):
            lost.append(('alike', alike_loss(model.looked, batch, what, heads[0])))
        for name, loss in lost:
            if loss:
                total = total + loss[0]
                batch['found']['%s %s' % (name, what)] = loss[1]
    return total


def losses(model, batch, a):
    hidden, table = model(batch)
    targets = batch['targets']
    kept = targets != IGNORE
    chosen, places = targets[kept], kept.nonzero()[:, 0]
    logits = F.linear(hidden.index_select(0, places), table)
    each = F.cross_entropy(logits, chosen, reduction='none')
    of_answer = places >= batch['split']
    weights = batch['weights'].index_select(0, places[of_answer] - batch['split'])
    answer = (each[of_answer] * weights).sum() / weights.sum()
    document = each[~of_answer].mean() if bool((~of_answer).any()) else answer * 0
    with torch.no_grad():
        right = (logits[of_answer].argmax(-1) == chosen[of_answer]).float()
        which = batch['answer_of'].index_select(0, places[of_answer] - batch['split'])
        wrong = torch.zeros(len(batch['kinds']), device=right.device).index_add_(0, which, 1 - right)
        whole = (wrong == 0).float().tolist()
    batch['found'] = {'strayed': model.strayed.item()}
    total = answer + a.document_loss * document + a.seek * looks_loss(model, batch) + a.stray * model.strayed
    if bool((weights > 1).any()):
        batch['found'][batch['task'] + ' choices'] = right[weights > 1].mean().item()
    return total, answer.item(), document.item(), right.mean().item(), whole


def rate(done, a):
    """Share of the full learning rate after a share of the time."""
    return min(1.0, max(0.02, (1 - done) / a.cool))


def weights_of(path, tokenizer, device):
    """A checkpoint's or an exported folder's, and the rungs that the former came to."""
    try:
        if os.path.isdir(path):
            return read_back(path, tokenizer), (0, 0, 0)
        saved = torch.load(path, map_location=device, weights_only=False)
        return saved['model'], saved['state']['rungs']
    except (OSError, LookupError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise SystemExit('--begin-from %s: neither a checkpoint nor the folder of an exported model of a size known here: %s' % (path, error))


def begin_with(model, weights):
    """Weights of a model that may have fewer layers: the rest come after its first and its last, and do nothing yet."""
    count = 1 + max(int(name.split('.')[1]) for name in weights if name.startswith('layers.'))
    before = (model.size[1] - count) // 2

    def now(name):
        part = name.split('.')
        return '.'.join([part[0], str(int(part[1]) + before)] + part[2:]) if part[0] == 'layers' and part[1] != '0' else name

    try:
        missing, unknown = model.load_state_dict({now(name): weight for name, weight in weights.items()}, strict=False)
    except RuntimeError as error:
        raise SystemExit('--begin-from does not fit a model of %s: %s' % (model.size, error))
    if unknown or any(not name.startswith('layers.') for name in missing):
        raise SystemExit('%s does not fit: %s' % (model.size, ', '.join(unknown + missing)))


def save(folder, state):
    path = os.path.join(folder, 'checkpoint.pt')
    torch.save(state, path + '.new')
    os.replace(path + '.new', path)


def options():
    p = argparse.ArgumentParser()
    p.add_argument('--out', required=True)
    p.add_argument('--minutes', type=float, default=90)
    p.add_argument('--begin-from', help='a checkpoint, of fewer layers perhaps, whose weights and rungs a new training begins with; or the '
                   'folder of an exported model')
    p.add_argument('--size', choices=SIZES, default=None)
    p.add_argument('--device', default='auto')
    p.add_argument('--tokenizer', default=os.path.join(HERE, '..', 'model', 'tokenizer.json'))
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--tokens', type=int, default=None, help='of a batch, about')
    p.add_argument('--shares', type=float, nargs=3, default=(0.3, 0.4, 0.3), help='of look-ups, finding and lists')
    p.add_argument('--rungs', type=int, nargs=3, choices=range(len(LADDER)), metavar='RUNG', help='where a new training begins on the ladder')
    p.add_argument('--crowded', type=float, default=0.4, help='share of contexts of which a first line may leave most out')
    p.add_argument('--many', type=int, default=70, help='documents of these, at most; 9 or more')
    p.add_argument('--lr', type=float, default=0.02)
    p.add_argument('--lr-rest', type=float, default=8e-3, help='of what is no matrix')
    p.add_argument('--document-loss', type=float, default=0.1)
    p.add_argument('--cool', type=float, default=0.4, help='share of the minutes over which the learning rate falls')
    p.add_argument('--seek', type=float, default=0.4, help='weight of the loss that shows where answers stand')
    p.add_argument('--stray', type=float, default=3.0, help='weight of the loss of looking into documents in the other layers')
    p.add_argument('--save-every', type=float, default=180)
    p.add_argument('--climb', type=float, default=0.75, help='share of right answers that ends a rung')
    p.add_argument('--compile', action='store_true')
    a = p.parse_args()
    if a.many < LADDER[5]:
        p.error('--many: at least %d' % LADDER[5])
    if a.device == 'auto':
        a.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    a.size = a.size or ('gpu' if a.device == 'cuda' else 'cpu')
    a.tokens = a.tokens or (65536 if a.device == 'cuda' else 10000)
    return a


def main():
    a = options()
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(a.seed)
    tokenizer = Tokenizer.from_file(a.tokenizer)
    bases, spaced, numbers = share_spaces(tokenizer)
    model = Reader(SIZES[a.size], bases, spaced, numbers).to(a.device)
    if a.compile:
        Layer.project, Layer.finish = (torch.compile(f, dynamic=True) for f in (Layer.project, Layer.finish))
    matrices = [p for layer in model.layers for p in layer.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, a.lr)
    adam = torch.optim.AdamW(rest, a.lr_rest, (0.9, 0.95), weight_decay=0.0)
    state = {'step': 0, 'seconds': 0.0, 'tokens': 0, 'rungs': list(a.rungs or (0, 0, 0)), 'ema': {}}
    path = os.path.join(a.out, 'checkpoint.pt')
    if a.begin_from and not os.path.exists(path):
        weights, rungs = weights_of(a.begin_from, tokenizer, a.device)
        begin_with(model, weights)
        state['rungs'] = list(a.rungs or rungs)
    if os.path.exists(path):
        saved = torch.load(path, map_location=a.device, weights_only=False)
        model.load_state_dict(saved['model'])
        muon.load_state_dict(saved['muon'])
        if saved['adam']:
            adam.load_state_dict(saved['adam'])
        state = saved['state']
        print('goes on from step %d, %.1f minutes' % (state['step'], state['seconds'] / 60), flush=True)
    context = multiprocessing.get_context('fork')
    rungs = context.Array('i', state['rungs'], lock=False)
    queue = context.Queue(6)
    workers = [context.Process(target=producer, daemon=True, args=(queue, rungs, a.seed * 1000003 + state['step'] * 17 + i, a))
               for i in range(1 if a.device == 'cpu' else 12)]
    for w in workers:
        w.start()
    run(a, model, muon, adam, state, rungs, queue, workers)
    for w in workers:
        w.terminate()


def climb(state, rungs, batch, right, a):
    """One more rung for a task whose answers are right often enough on its highest."""
    task, ema = TASKS.index(batch['task']), state['ema']
    if batch['at'] != rungs[task] or batch['rung'] != rungs[task]:
        return
    name = 'rung %d %d' % (task, rungs[task])
    count, value = ema.get(name, (0, 0.0))
    value += (right - value) / min(count + 1, 12)
    ema[name] = (count + 1, value)
    wanted = a.climb if batch['task'] == 'look' else a.climb / 2  # a list is long: it is seldom right to the letter
    if count >= 10 and value > wanted and rungs[task] + 1 < len(LADDER):
        rungs[task] += 1
        state['rungs'] = list(rungs)


def note(state, batch, answer, document, right, whole):
    ema = state['ema']

    def add(name, value, n=60):
        ema[name] = ema.get(name, value) + (value - ema.get(name, value)) / n

    add('%s loss' % batch['task'], answer)
    add('%s right' % batch['task'], right)
    add('document loss', document)
    for kind in set(batch['kinds']):
        these = [w for w, k in zip(whole, batch['kinds']) if k == kind]
        add('%s whole' % kind, sum(these) / len(these))


def next_batch(queue, workers):
    while True:
        try:
            return queue.get(timeout=5)
        except queues.Empty:
            if not all(w.is_alive() for w in workers):
                raise SystemExit('a process that makes data has ended (above: why); --out goes on from its last checkpoint')


def run(a, model, muon, adam, state, rungs, queue, workers):
    last_save = last_print = time.time()
    printed_tokens = state['tokens']
    log = open(os.path.join(a.out, 'log.jsonl'), 'a')
    autocast = torch.autocast('cuda', torch.bfloat16, enabled=a.device == 'cuda')
    while state['seconds'] < a.minutes * 60:
        begin = time.time()
        raw = next_batch(queue, workers)
        batch = to_device(raw, a.device)
        waited = time.time() - begin
        share = rate(state['seconds'] / (a.minutes * 60), a) * min(1.0, (state['step'] + 1) / 20)
        muon.lr = a.lr * share
        for g in adam.param_groups:
            g['lr'] = a.lr_rest * share
        with autocast:
            loss, answer, document, right, whole = losses(model, batch, a)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in adam.param_groups for p in g['params']], 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad(set_to_none=True)
        state['step'] += 1
        state['tokens'] += len(raw['tokens'])
        state['seconds'] += time.time() - begin
        note(state, batch, answer, document, right, whole)
        for name, found in batch['found'].items():
            state['ema'][name] = state['ema'].get(name, 0.0) * 0.95 + 0.05 * found
        climb(state, rungs, batch, sum(whole) / len(whole), a)
        now = time.time()
        if now - last_print > 15:
            line = {'minutes': round(state['seconds'] / 60, 2), 'step': state['step'], 'tokens': state['tokens'],
                    'documents': [LADDER[r] for r in rungs], 'tokens_a_second': int((state['tokens'] - printed_tokens) / (now - last_print)),
                    'waited': round(waited, 3)}
            line.update({k: round(v, 4) for k, v in state['ema'].items() if isinstance(v, float)})
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + '\n')
            log.flush()
            last_print, printed_tokens = now, state['tokens']
        if now - last_save > a.save_every or state['seconds'] >= a.minutes * 60:
            save(a.out, {'model': model.state_dict(), 'muon': muon.state_dict(), 'adam': adam.state_dict(),
                         'state': state, 'size': a.size})
            last_save = now


if __name__ == '__main__':
    main()
