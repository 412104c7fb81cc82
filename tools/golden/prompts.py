"""The token sequences of a golden file: fixed random ids, or text where the checkpoint has a tokenizer."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

LAYERS_LENGTH = 24
LONG_LENGTH = {"odd-fp8": 200, "tiny": 600}
RANDOM_PROMPTS = 24

# Long enough in thinking, or stories, that 64 tokens do not run far past the end of the answer.
QUESTIONS = [
    "What is 123 + 456?",
    "What is 27 + 58?",
    "What is 385 + 247?",
    "What is 602 - 318?",
    "Calculate 918 - 475.",
    "What is 764 plus 159?",
    "How much is 250 - 733?",
    "What is 830 - 121?",
    "Compute 546 + 372.",
    "What is 999 + 999?",
    "Tell me a story about a fox.",
    "Write a short story about a cat.",
]
HISTORY = [(17, 25), (640, 82), (305, 411), (8, 9), (77, 123), (512, 256), (90, 10), (333, 444)]


class Prompts:
    """`layers`: every intermediate is recorded. `greedy`: candidates for generation. `long`: only its last logits,
    the beginning of `endless`."""

    layers: torch.Tensor
    greedy: list[torch.Tensor]
    long: torch.Tensor | None = None
    endless: torch.Tensor

    def __init__(self, name: str, folder: Path, config):
        if (folder / "tokenizer.json").exists():
            self.from_text(folder)
        else:
            self.from_ids(config.vocab_size)
        if name in LONG_LENGTH:
            self.long = self.endless[: min(LONG_LENGTH[name], config.max_position_embeddings)]

    def from_ids(self, vocab: int) -> None:
        generator = torch.Generator().manual_seed(3)

        def draw(length: int) -> torch.Tensor:
            return torch.randint(2, vocab, (length,), generator=generator)

        self.layers = draw(LAYERS_LENGTH)
        self.greedy = [draw(12) for _ in range(RANDOM_PROMPTS)]
        self.endless = draw(max(LONG_LENGTH.values()))

    def from_text(self, folder: Path) -> None:
        # This class takes tokenizer.json as it is, whatever class tokenizer_config.json names.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

        def chat(messages: list[tuple[str, str]], answer: bool) -> torch.Tensor:
            text = tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=answer,
            )
            return torch.tensor(tokenizer.encode(text, add_special_tokens=False))

        self.greedy = [chat([("user", question)], answer=True) for question in QUESTIONS]
        turns = [
            message
            for a, b in HISTORY * 8
            for message in [("user", f"What is {a} + {b}?"), ("assistant", f"{a} + {b} = {a + b}")]
        ]
        self.endless = chat(turns, answer=False)
        self.layers = self.endless[:LAYERS_LENGTH]
