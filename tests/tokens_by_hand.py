"""A tokenizer's special tokens written down by hand, for tests of objectives."""

import numpy as np

from pretrain.objectives.tokens import SpecialTokens

PAD, UNK, BOS, EOS = range(4)
SENTINELS = tuple(range(4, 104))
MASK = 104
FIRST_BYTE = 105
FIRST_TEXT = FIRST_BYTE + 256
SPECIAL = frozenset(range(FIRST_BYTE))


def make_tokens(texts, mask=MASK):
    """Ids as a trained tokenizer has them: marks, sentinels, mask, byte pieces, then one piece for each text."""
    spelling = [b""] * FIRST_BYTE + [bytes([value]) for value in range(256)] + [text.encode() for text in texts]
    return SpecialTokens(PAD, UNK, BOS, EOS, SENTINELS, mask, lambda: spelling)


WORDS = make_tokens([f" word{number}" for number in range(1000)])
"""A thousand pieces, each a word."""
TEXT_IDS = np.arange(FIRST_BYTE, FIRST_TEXT + 1000)


def text_of(length, seed=0):
    """Random words of `WORDS`."""
    return np.random.default_rng(seed).integers(FIRST_TEXT, FIRST_TEXT + 1000, length)


def different(length):
    """Words of `WORDS` that are all different, in rising order."""
    assert length <= 1000
    return np.arange(FIRST_TEXT, FIRST_TEXT + length)


def rng(seed=0):
    return np.random.default_rng(seed)


def spread(draws, p):
    """Five standard errors of a count of `draws` independent events of probability p.

    Of a thousand such comparisons of a right implementation one fails with probability 6e-4 at most; the seeds are
    fixed, so a test that passes once passes always.
    """
    return 5 * np.sqrt(draws * p * (1 - p))
