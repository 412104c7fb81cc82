"""A byte-level BPE tokenizer in the shape of DeepSeek-V3's, with 1024 ids, trained on the generated text."""
import json
import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import data

VOCAB = 1024
SPECIAL = [data.BOS, data.EOS, data.PAD]  # ids 0, 1, 2
# The original keeps these outside the BPE vocabulary, at its end, and not "special": they survive decoding.
ADDED = ["<think>", "</think>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", data.USER, data.ASSISTANT, "<|EOT|>",
         "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
         "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>"]

WORDS = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
         r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus(seed, documents):
    """Text without digits (so that no merge joins digits) and without the template's special tokens."""
    rng = random.Random(seed)
    for _ in range(documents):
        make = rng.choice([data.arithmetic_doc, data.talk_doc, data.story_doc, data.story_doc])
        text = "".join(piece for piece, _ in make(rng))
        for part in re.split(r"[0-9]+|<[｜/]?[^<>\n ]+>", text):
            if part:
                yield part


def train(seed=1, documents=20000):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    # As in the original this adds no token: the leading BOS comes from `add_bos_token` or from the chat template.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(ADDED), show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(seed, documents), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=True) for t in ADDED])
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == [0, 1, 2]
    return tokenizer


if __name__ == "__main__":
    t = train()
    ids = t.encode("What is 27 + 58?\n</think>\n\n27 + 58 = 85" + data.EOS).ids
    print([t.id_to_token(i) for i in ids], t.decode(ids))
    rng = random.Random(3)
    docs = [data.arithmetic_doc(rng) for _ in range(2000)]
    lens = [len(i) for i, _ in data.encode_docs(t, docs)]
    print("arithmetic tokens: mean", sum(lens) / len(lens), "max", max(lens))
    lens = [len(i) for i, _ in data.encode_docs(t, [data.story_doc(rng) for _ in range(500)])]
    print("story tokens: mean", sum(lens) / len(lens), "max", max(lens))
    doc = data.encode_docs(t, docs[:1])[0][0]
    print([t.id_to_token(i) for i in doc])
    s = "héllo 世界 \U0001F600 1234567"
    assert t.decode(t.encode(s).ids) == s
    print(json.loads(t.to_str())["post_processor"])
