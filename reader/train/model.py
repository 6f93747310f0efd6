# SPDX-License-Identifier: Apache-2.0
"""The model: Qwen3's layers, with attention over documents as blocks, exactly as the reader in C attends.

Documents attend inside themselves only; tokens of a question and its answer attend to all documents of their context
and to what stands before them in their own question. A document of n tokens lies at positions R-n to R-1, a question
begins at R ("shared" in reader.json; rotary embedding is relative, so a document on its own is the same at 0 to n-1).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

SIZES = {  # hidden, layers, query heads, KV heads, head dim, MLP
    'tiny': (64, 4, 4, 2, 16, 128),
    'cpu': (128, 6, 4, 2, 64, 384),
    'gpu': (320, 8, 8, 4, 64, 1024),
}
THETA, EPSILON, RANGE = 10000.0, 1e-6, 512


def rms(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, EPSILON)


def rotation(positions, dim):
    """cos and sin at each position, for rotary halves."""
    inverse = THETA ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angle = positions.float()[:, None] * inverse[None]
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


WAVES = 32


def number_features(texts):
    """What the rows of groups of digits are made of: waves of the value, so that near ones are alike and greater can be
    told from less, each digit at its place, and how many there are. All groups share what is learnt of these."""
    rates = 2 * math.pi / torch.logspace(math.log10(6), math.log10(2400), WAVES // 2)
    rows = []
    for text in texts:
        angle, digits = int(text) * rates, torch.zeros(3, 10)
        for place, digit in enumerate(reversed(text)):
            digits[place, int(digit)] = 1
        rows.append(torch.cat((angle.sin(), angle.cos(), digits.flatten(), F.one_hot(torch.tensor(len(text) - 1), 3))))
    return torch.stack(rows)


class Layer(nn.Module):
    def __init__(self, size, reads):
        super().__init__()
        self.reads = reads  # questions and answers look into documents here
        hidden, _, self.heads, self.kv, self.dim, mlp = size
        self.norm1, self.norm2 = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.q_norm, self.k_norm = nn.Parameter(torch.full((self.dim,), 1.5)), nn.Parameter(torch.full((self.dim,), 1.5))
        self.q = nn.Parameter(torch.empty(self.heads * self.dim, hidden))
        self.k = nn.Parameter(torch.empty(self.kv * self.dim, hidden))
        self.v = nn.Parameter(torch.empty(self.kv * self.dim, hidden))
        self.o = nn.Parameter(torch.zeros(hidden, self.heads * self.dim))
        self.gate, self.up = nn.Parameter(torch.empty(mlp, hidden)), nn.Parameter(torch.empty(mlp, hidden))
        self.down = nn.Parameter(torch.zeros(hidden, mlp))
        for w in (self.q, self.k, self.v, self.gate, self.up):
            nn.init.normal_(w, std=hidden ** -0.5)

    def project(self, x, cos, sin):
        """Query, key and value of packed tokens, rotated."""
        h = rms(x, self.norm1)
        q, k, v = F.linear(h, torch.cat((self.q, self.k, self.v))).split(
            (self.heads * self.dim, self.kv * self.dim, self.kv * self.dim), -1)
        q = rotate(rms(q.view(-1, self.heads, self.dim), self.q_norm), cos, sin)
        k = rotate(rms(k.view(-1, self.kv, self.dim), self.k_norm), cos, sin)
        return q, k, v.view(-1, self.kv, self.dim)

    def finish(self, x, attended):
        x = x + F.linear(attended, self.o)
        h = rms(x, self.norm2)
        return x + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)


class Reader(nn.Module):
    """bases: the row of each token in the base table; spaced: whether a space comes first; the two share what they mean."""

    def __init__(self, size, bases, spaced, numbers):
        super().__init__()
        self.size = size
        hidden = size[0]
        self.register_buffer('base_of', torch.as_tensor(bases))
        self.register_buffer('spaced', torch.as_tensor(spaced, dtype=torch.float32)[:, None])
        self.base = nn.Parameter(torch.randn(int(self.base_of.max()) + 1, hidden) * 0.3)
        self.space = nn.Parameter(torch.randn(hidden) * 0.3)
        self.layers = nn.ModuleList(Layer(size, i - size[1] // 2 in (0, 1)) for i in range(size[1]))
        self.norm = nn.Parameter(torch.full((hidden,), 0.15))
        self.register_buffer('number_rows', torch.tensor([row for row, _ in numbers]))
        self.register_buffer('number_features', number_features([text for _, text in numbers]))
        self.number_mix = nn.Parameter(torch.randn(self.number_features.shape[1], hidden) * 0.17)
        with torch.no_grad():
            self.number_mix[:WAVES] = torch.eye(WAVES, hidden) * 0.5

    def table(self):
        base = self.base.index_copy(0, self.number_rows, self.number_features @ self.number_mix)
        return base[self.base_of] + self.spaced * self.space

    def forward(self, batch):
        """Hidden states after the last norm: of the documents' tokens, then of the questions'."""
        table = self.table()
        x = F.embedding(batch['tokens'], table)
        cos, sin = rotation(batch['positions'], self.size[4])
        self.looked, self.strayed = [], 0.0
        for layer in self.layers:
            q, k, v = layer.project(x, cos, sin)
            self.looked.append((q, k))
            attended, strayed = attend(layer, batch, q, k, v)
            self.strayed = self.strayed + strayed / (len(self.layers) - 2)
            x = layer.finish(x, attended)
        return rms(x, self.norm), table


def spread(x, at, rows):
    """Packed tokens to rows of a padded table."""
    return x.new_zeros((rows,) + x.shape[1:]).index_copy(0, at, x)


def by_heads(x, rows, kv):
    """(rows · n, heads, dim) to (rows · kv, group · n, dim): the queries of a group are rows of one matrix."""
    _, heads, dim = x.shape
    return x.view(rows, -1, kv, heads // kv, dim).permute(0, 2, 3, 1, 4).reshape(rows * kv, -1, dim)


def by_tokens(x, rows, kv, group):
    """Back again."""
    dim = x.shape[-1]
    return x.view(rows, kv, group, -1, dim).permute(0, 3, 1, 2, 4).reshape(-1, kv * group * dim)


def causal(n, group, like):
    return torch.full((n, n), float('-inf'), device=like.device, dtype=like.dtype).triu(1).repeat(group, 1)


class Products(torch.autograd.Function):
    """scale · q · kᵀ + added, of (rows, n, dim) and (rows, m, dim). What autograd would do for k is three times slower on a CPU:
    it multiplies by a matrix of dim rows from the left."""

    @staticmethod
    def forward(ctx, added, q, k, scale):
        ctx.save_for_backward(q, k)
        ctx.scale = scale
        return torch.baddbmm(added, q, k.transpose(1, 2), alpha=scale)

    @staticmethod
    def backward(ctx, grown):
        q, k = (x.to(grown.dtype) for x in ctx.saved_tensors)  # autocast ends with the forward pass
        return None, torch.bmm(grown, k) * ctx.scale, torch.bmm(grown.transpose(1, 2), q) * ctx.scale, None


def products(added, q, k):
    return Products.apply(added, q, k, q.shape[2] ** -0.5)


def attend_inside(q, k, v, rows, kv):
    """Scores of tokens among those of their own row up to themselves. What fills a row up comes last: nobody sees it."""
    group = q.shape[1] // kv
    q, k = by_heads(q, rows, kv), by_heads(k, rows, kv)
    return products(causal(k.shape[1], group, q), q, k), by_heads(v, rows, kv)


def attend(layer, batch, q, k, v):
    """batch: contexts C, documents D each of n tokens at most, in all w at most, questions Q each of t at most; padded
    places of the packed tokens in document_at, question_at, and, of documents as keys of a context's questions, key_at;
    mask (C, 1, w): -inf where these are filled up. In layers that are not to read documents, a question sees only a few of their
    tokens, few, each for many. Gives what was attended to, and, of these layers, how much of it questions and answers
    found in documents: the mean of -log(1 - share).
    Plain products: here the fused kernel takes longer on a CPU, as its pieces are small."""
    c, d, n, w, asked, t = batch['shape']
    split, kv, group = batch['document_at'].shape[0], layer.kv, layer.heads // layer.kv
    qd, kd, vd = (spread(y[:split], batch['document_at'], c * d * n) for y in (q, k, v))
    scores, values = attend_inside(qd, kd, vd, c * d, kv)
    documents = by_tokens(torch.bmm(scores.softmax(-1), values), c * d, kv, group)
    qq, kq, vq = (spread(y[split:], batch['question_at'], c * asked * t) for y in (q, k, v))
    own, own_values = attend_inside(qq, kq, vq, c * asked, kv)  # (C · Q · kv, group · t, t)
    own = own.view(c, asked, kv, group, t, t).permute(0, 2, 3, 1, 4, 5).reshape(c * kv, -1, t)
    if layer.reads:
        kd, vd = (spread(y[:split], batch['key_at'], c * w) for y in (k, v))
        mask = batch['mask']
    else:
        mask = batch['few_mask']
        w = mask.shape[2]
        kd, vd = (spread(y[batch['few']], batch['few_at'], c * w) for y in (k, v))
    kd, vd = by_heads(kd, c, kv), by_heads(vd, c, kv)
    mask = mask.repeat_interleave(kv, 0).to(q.dtype)
    over = products(mask, by_heads(qq, c, kv), kd)
    over, own = torch.cat((over, own), -1).softmax(-1).split((w, t), -1)
    strayed = 0.0
    if not layer.reads:
        stayed = by_tokens(own.sum(-1, keepdim=True), c, kv, group).index_select(0, batch['question_at'])
        strayed = -stayed.clamp_min(1e-6).log().mean()
    own = own.view(c, kv, group, asked, t, t).permute(0, 3, 1, 2, 4, 5).reshape(c * asked * kv, -1, t)
    questions = by_tokens(torch.bmm(over, vd), c, kv, group) + by_tokens(torch.bmm(own, own_values), c * asked, kv, group)
    return torch.cat((documents.index_select(0, batch['document_at']), questions.index_select(0, batch['question_at']))), strayed


def share_spaces(tokenizer):
    """Base row and space flag of every token, and the rows that are groups of digits, with their text."""
    vocab = tokenizer.get_vocab()
    names = {i: t for t, i in vocab.items()}
    bases, spaced, rows = [], [], {}
    for i in range(len(names)):
        t = names[i]
        bare = t[1:] if t[0] == 'Ġ' and t[1:] in vocab else t
        bases.append(rows.setdefault(bare, len(rows)))
        spaced.append(float(bare != t))
    return bases, spaced, [(row, t) for t, row in rows.items() if t.isascii() and t.isdigit()]
