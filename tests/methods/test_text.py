"""Text: the encoder, its views and losses, and what each method must learn."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from ssl_methods.encoders.shallow import BagOfWords
from ssl_methods.encoders.transformers import TextTransformer, at
from ssl_methods.generative.gpt import GPT
from ssl_methods.masked.electra import detection_loss, draw_words
from ssl_methods.modalities import text
from ssl_methods.parts.heads import OrderHead, TokenHead
from ssl_methods.parts.losses import info_nce, labelled_loss
from ssl_methods.parts.statistics import Unigram
from stages.common.settings import InputError
from stages.training.loop import build_method
from tests.methods.test_methods import FACTS, small, trained_on

LONG = torch.cat([torch.tensor([[1]]), torch.arange(5, 65)[None], torch.tensor([[2, 0, 0]])], dim=1).int()  # 60 words


@pytest.fixture
def encoder() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocabulary=35, length=12, width=16, depth=2, heads=2).eval()


@pytest.fixture
def causal() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocabulary=35, length=12, width=16, depth=2, heads=2, causal=True).eval()


# The encoder


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_neither_padding_nor_neighbours_change_an_embedding(kind, request, sentences):
    encoder, ids = request.getfixturevalue(kind), sentences["token"][:8]
    together, padded = encoder.depths(ids), encoder.depths(F.pad(ids, (0, 9)))
    for row in range(8):
        alone = encoder.depths(ids[row : row + 1, : int((ids[row] > 0).sum())])
        for depth, features in alone.items():
            torch.testing.assert_close(together[depth][row], features[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(padded[depth][row], features[0], rtol=1e-4, atol=1e-5)


def test_a_causal_token_knows_nothing_of_those_after_it(causal, sentences):
    method = GPT(causal, vocabulary=35).eval()
    ids = sentences["token"][:4]
    before = method.predict(ids)
    for t in range(1, 12):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 7) % 35
        after = method.predict(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=0)
        assert not after[:, t].allclose(before[:, t])


def test_other_encoders_see_both_ways(encoder, sentences):
    ids = sentences["token"][:1].clone()
    before = encoder.tokens(ids)[:, 1]
    ids[0, 3] = 30
    assert not encoder.tokens(ids)[:, 1].allclose(before)


def test_a_causal_encoder_is_read_at_its_last_token(causal, sentences):
    ids = sentences["token"][:5]
    ends = (ids == text.SEP).nonzero()[:, 1]
    torch.testing.assert_close(causal.depths(ids)["block 2 last"], causal.tokens(ids)[torch.arange(5), ends])


def test_dropout_is_for_training_alone(encoder, sentences):
    ids = sentences["token"][:4]
    assert encoder(ids).equal(encoder(ids))
    encoder.train()
    assert not encoder(ids).equal(encoder(ids))


def test_units_are_dropped_in_training_alone(sentences):
    torch.manual_seed(0)
    encoder, ids = (
        TextTransformer(vocabulary=35, length=12, width=16, depth=1, heads=2, dropout=0.3),
        sentences["token"][:4],
    )
    assert not encoder(ids).allclose(encoder(ids), atol=1e-3)
    encoder.eval()
    assert encoder(ids).equal(encoder(ids))


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="`heads` 3 to divide `width` 16"):
        TextTransformer(vocabulary=35, length=12, width=16, heads=3)


def test_tfidf_is_scikit_learns(sentences):
    ids = sentences["token"][:64]
    encoder = BagOfWords(vocabulary=35, width=4)
    texts = [" ".join(f"w{i}" for i in row[row > 3].tolist()) for row in ids]
    theirs = TfidfVectorizer(vocabulary=[f"w{i}" for i in range(35)]).fit(texts)
    counts = (encoder.counts(ids) > 0).sum(0)
    encoder.idf.data = 1 + ((1 + 64) / (1 + counts)).log()
    expected = torch.from_numpy(theirs.transform(texts).toarray()).float()
    torch.testing.assert_close(encoder.weighted(ids).detach(), expected, rtol=1e-5, atol=1e-6)


def test_lsa_is_scikit_learns(params, sentences, tmp_path):
    method, _ = trained_on(sentences, small(params.entry("text", "lsa")), tmp_path, steps=6 * 8)
    x = method.encoder.weighted(sentences["token"]).detach()
    ours = method.encoder(sentences["token"]).detach()
    theirs = torch.from_numpy(TruncatedSVD(8, algorithm="arpack").fit_transform(x.double().numpy())).float()
    torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=1e-3, atol=1e-3)  # an axis may point either way


@pytest.mark.parametrize("causal", [False, True])
def test_the_transformer_is_torchs_with_the_same_weights(causal):
    torch.manual_seed(0)
    ours = TextTransformer(vocabulary=35, length=12, width=32, depth=2, heads=2, dropout=0.0, causal=causal).eval()
    width = ours.dim
    layer = nn.TransformerEncoderLayer(width, 2, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False).eval()
    names = {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj",
        "mlp.0": "linear1",
        "mlp.2": "linear2",
        "blocks": "layers",
    }
    copied = {}
    for name, weight in ours.transformer.state_dict().items():
        for mine, its in names.items():
            name = name.replace(mine, its)
        copied[name] = weight + 0.1 * torch.randn_like(weight)
    theirs.load_state_dict(copied)
    ours.transformer.load_state_dict(dict(zip(ours.transformer.state_dict(), copied.values(), strict=True)))
    ids = torch.randint(5, 30, (3, 12)).masked_fill(torch.arange(12) >= torch.tensor([[12], [7], [9]]), 0)
    hidden = {"mask": torch.ones(12, 12).triu(1).bool()} if causal else {"src_key_padding_mask": ids == 0}
    real = ids > 0
    torch.testing.assert_close(ours.tokens(ids)[real], theirs(ours.enter(ids), **hidden)[real], rtol=1e-4, atol=1e-5)


# What is hidden, and what is paired


def test_masking_is_berts():
    torch.manual_seed(0)
    ids = LONG.repeat(4000, 1)
    chosen = text.choose(ids, 0.15)
    assert chosen.sum(1).eq(9).all()  # 15 % of 60
    old = ids[chosen]
    assert old.min() > text.MASK  # no special token
    share = torch.bincount(old, minlength=65)[5:] / len(old)
    assert (share - 1 / 60).abs().max() < 0.004  # all alike
    new = text.corrupt(ids, chosen, 65)[chosen]
    hidden, kept = (new == text.MASK).float().mean().item(), (new == old).float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1 + 0.1 / 60, abs=0.01)
    assert new[new != text.MASK].min() > text.UNK


def test_what_is_not_chosen_stays():
    torch.manual_seed(0)
    ids = torch.cat([LONG, LONG.where(torch.arange(64) < 8, 0), LONG * 0])  # 60 words, 7, and none
    chosen = text.choose(ids, 0.15)
    assert chosen.sum(1).tolist() == [9, 1, 0]
    changed = text.corrupt(ids, chosen, 65) != ids
    assert not (changed & ~chosen).any()


def test_half_of_the_pairs_are_true_and_no_false_one_is():
    torch.manual_seed(0)
    n = 4000
    ids = torch.stack([torch.ones(n), torch.arange(n) + 5, torch.full((n,), 2)], 1).int()
    follows = ids + torch.tensor([0, n, 0]).int()
    pair, true, counts = text.pairs(ids, follows)
    assert pair.shape == (n, 5)
    assert counts.all()
    assert ((pair[:, 3] - pair[:, 1] == n) == true).all()
    assert true.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.bincount(pair[~true][:, 3]).max() < 10  # false ones are of all the batch


def test_pairs_without_a_next_do_not_count():
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 2]]).repeat(8, 1).int()
    follows = ids * (torch.arange(8) < 4).int()[:, None]
    for _ in range(20):
        _, _, counts = text.pairs(ids, follows)
        assert not counts[4:].any()
    assert not text.pairs(ids, follows * 0)[2].any()


def test_partners_are_headlines_and_the_means_of_their_articles():
    h = torch.arange(12.0).view(6, 2)
    found = text.partners({"text": {"block 1": h * 0, "block 2": h}}, {"document": torch.tensor([7, 7, 3, 9, 7, 9])})
    headlines, articles = found["headline to article"].values()
    assert headlines.tolist() == [[0, 1], [6, 7]]  # of 7 and of 9; 3 is a single sentence
    assert articles.tolist() == [[5, 6], [10, 11]]
    assert text.partners({"text": {"block 1": h}}, {"document": torch.arange(6)}) == {}


# Losses


def test_labelled_loss_is_the_mean_over_what_has_a_label():
    torch.manual_seed(0)
    logits, target = torch.randn(12, 7, requires_grad=True), torch.randint(7, (12,), dtype=torch.int32)
    target[[1, 4, 11]] = -1
    counts = target >= 0
    expected = [
        math.log(sum(math.exp(x) for x in logits[n].tolist())) - logits[n, target[n]].item()
        for n in counts.nonzero()[:, 0].tolist()
    ]
    loss, _ = labelled_loss(logits, target)
    assert loss.item() == pytest.approx(sum(expected) / 9, rel=1e-5)
    loss.backward()
    assert not logits.grad[~counts].any()
    assert labelled_loss(torch.zeros(12, 7), target)[0].item() == pytest.approx(math.log(7))
    for nothing in (labelled_loss(logits, target * 0 - 1), labelled_loss(logits[:0], target[:0])):
        assert [value.item() for value in nothing] == [0, 0]


def test_labelled_accuracy_is_the_share_told_right_of_what_has_a_label():
    torch.manual_seed(0)
    logits, target = torch.randn(20, 7), torch.randint(7, (20,), dtype=torch.int32)
    logits[:4].scatter_(1, target[:4, None].long(), 9.0)  # all right
    target[[2, 6, 10, *range(12, 20)]] = -1
    right = [int(logits[n].argmax()) == int(target[n]) for n in (target >= 0).nonzero()[:, 0].tolist()]
    assert labelled_loss(logits, target)[1].item() == pytest.approx(sum(right) / 9)
    assert 0 < sum(right) < 9


def test_info_nce_is_its_equation():
    torch.manual_seed(0)
    q, k = torch.randn(5, 8), torch.randn(5, 8)
    cosine = [[F.cosine_similarity(q[i], k[j], dim=0).item() for j in range(5)] for i in range(5)]
    expected = [
        -math.log(math.exp(cosine[i][i] / 0.3) / sum(math.exp(cosine[i][j] / 0.3) for j in range(5))) for i in range(5)
    ]
    assert info_nce(q, k, 0.3).item() == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert info_nce(torch.ones(5, 8), torch.ones(5, 8), 0.3).item() == pytest.approx(math.log(5))
    assert info_nce(torch.eye(5), torch.eye(5), 1.0).item() == pytest.approx(math.log(1 + 4 / math.e))


def test_the_frequencies_are_those_of_what_was_read():
    unigram = Unigram(8)
    unigram.add(torch.tensor([[5, 5, 6, 0], [5, 7, 0, 0]]).int())
    assert unigram.counts.tolist() == [1, 1, 1, 1, 1, 4, 2, 2]  # each began at 1; padding does not count
    found = unigram.loss(torch.tensor([5, 6, 0]))
    assert found.item() == pytest.approx(-(math.log(4 / 13) + math.log(2 / 13)) / 2)


def test_tokens_are_those_at_the_places():
    h = torch.randn(2, 5, 6)
    found = at(h, torch.tensor([[3, 0], [4, 4]]))
    assert found.equal(torch.stack([h[0, [3, 0]], h[1, [4, 4]]]))


def test_the_token_head_compares_with_the_embeddings():
    torch.manual_seed(0)
    head, h, embeddings = TokenHead(6, 9), torch.randn(2, 5, 6), torch.randn(9, 6)
    head.bias.data.normal_()
    torch.testing.assert_close(head(h, embeddings)[1, 4], head.transform(h[1, 4]) @ embeddings.T + head.bias)


def test_the_order_head_counts_what_it_is_told_to():
    torch.manual_seed(0)
    head, u, v = OrderHead(6), torch.randn(4, 6), torch.randn(4, 6)
    logits = head.layers(torch.stack([torch.cat([a * b, (a - b).abs()]) for a, b in zip(u, v, strict=True)]))[:, 0]
    right = torch.tensor([logits[0] > 0, logits[1] <= 0, logits[2] > 0, logits[3] > 0])
    loss, share = head(u, v, right, torch.tensor([True, True, False, False]))
    assert share.item() == 0.5
    expected = -(
        F.logsigmoid(logits[0] if right[0] else -logits[0]) + F.logsigmoid(logits[1] if right[1] else -logits[1])
    )
    torch.testing.assert_close(loss, expected / 2)


def test_the_means_of_a_pair_are_those_of_its_sentences(sentences):
    ids, follows = sentences["token"][:8], sentences["next"][:8].clone()
    follows[3] = 0  # nothing follows
    pair = torch.cat([ids, follows[:, 1:]], dim=1)
    h = torch.randn(*pair.shape, 5)
    encoder = TextTransformer(vocabulary=9, length=12, width=8, depth=1, heads=2)
    u, v = text.means(encoder, h, pair)
    for row in range(8):
        torch.testing.assert_close(u[row], h[row, :12][ids[row] > 0].mean(0))
        after = h[row, 12:][follows[row, 1:] > 0]
        torch.testing.assert_close(v[row], after.mean(0) if len(after) else torch.zeros(5))


def test_drawn_words_have_the_models_distribution():
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2])
    drawn = draw_words(p.log().expand(20000, 3), torch.rand(20000))
    torch.testing.assert_close(torch.bincount(drawn) / 20000, p, rtol=0, atol=0.02)


def test_electra_replaces_some_of_the_words_it_hides_and_nothing_else(params, sentences, monkeypatch):
    method, ids = build_method(small(params.entry("text", "electra")), FACTS, seed=0), sentences["token"][:20]
    read, hidden = [], text.choose(ids, method.mask)
    monkeypatch.setattr(
        method.encoder, "tokens", lambda ids: read.append(ids) or TextTransformer.tokens(method.encoder, ids)
    )
    monkeypatch.setattr(text, "choose", lambda *_: hidden)
    method({"token": ids})
    (corrupted,) = read
    assert corrupted.dtype is ids.dtype
    assert corrupted[~hidden].equal(ids[~hidden])
    assert 0 < (corrupted != ids).sum() <= hidden.sum()


def test_detection_loss_is_its_equation():
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    replaced, words = torch.tensor([[True, False, True]]), torch.tensor([[True, True, False]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert detection_loss(logits, replaced, words).item() == pytest.approx(expected, rel=1e-6)


def test_supervised_passes_over_unlabelled_sentences(params, sentences):
    method = build_method(small(params.entry("text", "supervised_text")), FACTS, seed=0).eval()
    batch = {"token": sentences["token"][:6], "label": torch.tensor([0, -1, 2, -1, -1, 1])}
    known = batch["label"] >= 0
    expected = F.cross_entropy(method.head(method.encoder(batch["token"][known])), batch["label"][known])
    torch.testing.assert_close(method(batch)[0], expected)
    loss, extras = method({**batch, "label": torch.full((6,), -1)})
    assert (loss.item(), extras["accuracy"].item()) == (0, 0)
    loss.backward()


def test_gpt_refuses_an_encoder_that_sees_ahead(params):
    entry = params.entry("text", "gpt")
    with pytest.raises(InputError, match="must be `causal: true`"):
        build_method(entry.model_copy(update={"encoder": params.entry("text", "mlm").encoder}), FACTS, seed=0)


# What they learn, of sentences whose words come in turn


def learnt(params, sentences, folder, name: str, steps: int = 400, **hyper):
    """The method, and the numbers of the last point of its curve."""
    method, curve = trained_on(sentences, small(params.entry("text", name), **hyper), folder, steps)
    return method.eval(), curve[-1]


def test_mlm_tells_hidden_words_from_their_neighbours(params, sentences, tmp_path):
    _, last = learnt(params, sentences, tmp_path, "mlm", mask=0.15)  # so that most words have both neighbours
    assert last["nats"] < 0.6 * last["unigram"]  # to know the topic alone is 0.65
    assert last["accuracy"] > 0.25  # and of its words 0.1


def test_gpt_tells_the_next_word_and_writes_like_what_it_read(params, sentences, tmp_path):
    method, last = learnt(params, sentences, tmp_path, "gpt", 200)
    assert last["nats"] < 0.6 * last["unigram"]
    torch.manual_seed(0)
    said = method.say(64)
    assert said.shape == (64, 12)
    assert (said[:, 0] == text.CLS).all()
    assert not (said[:, 1:] == text.CLS).any()
    ended = (said == text.SEP).cumsum(1).cumsum(1) > 1
    assert not said[ended].any()  # nothing but padding behind the end
    words = (said[:, 1:-1] > text.UNK) & (said[:, 2:] > text.UNK)
    in_turn = (said[:, 2:] - said[:, 1:-1] - 1) % 10 == 0
    assert in_turn[words].float().mean() > 0.7


def test_nsp_tells_what_follows(params, sentences, tmp_path):
    _, last = learnt(params, sentences, tmp_path, "nsp", 300)
    assert last["next"] > 0.7  # two in three false ones are of another topic


def test_bert_does_both(params, sentences, tmp_path):
    _, last = learnt(params, sentences, tmp_path, "bert")
    assert last["nats"] < 0.7 * last["unigram"]
    assert last["next"] > 0.65


def test_electra_finds_replaced_words(params, sentences, tmp_path):
    method, last = learnt(params, sentences, tmp_path, "electra")
    assert last["nats"] < 0.7 * last["unigram"]
    ids = sentences["token"]
    place = torch.randint(1, 5, (256, 1))  # of a word: each sentence has four
    other = 5 + (ids.gather(1, place) - 5 + torch.randint(1, 30, (256, 1))) % 30
    doubt = method.detector(method.encoder.tokens(ids.scatter(1, place, other.int())))[..., 0]
    replaced = torch.zeros_like(ids).bool().scatter(1, place, True)
    above = doubt[replaced][:, None] > doubt[~replaced & (ids > text.UNK)]
    assert above.float().mean() > 0.8  # the area under the ROC curve


def test_simcse_tells_sentences_apart_whatever_is_dropped(params, sentences, tmp_path):
    def matched(encoder: TextTransformer) -> float:
        torch.manual_seed(1)
        ids = sentences["token"].unique(dim=0)
        with torch.no_grad():
            a, b = (F.normalize(encoder.train()(ids), dim=1) for _ in range(2))
        return ((a @ b.T).argmax(1) == torch.arange(len(ids))).float().mean().item()

    entry = small(params.entry("text", "simcse"))
    method, _ = trained_on(sentences, entry, tmp_path, 200, lr=1e-2)
    assert matched(method.encoder) > matched(build_method(entry, FACTS, seed=0).encoder) + 0.05
