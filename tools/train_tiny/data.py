"""The training text, all of it from the generators in this file.

A document is a list of (text, learn) segments. `learn` says whether the loss counts the segment's
tokens: the user's words are given to the model, so it does not have to learn to guess them.
"""
import hashlib
import random

from stories import story, story_about

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"

COLUMNS = ["ones", "tens", "hundreds"]


def is_heldout(a, b, op):
    """One problem in twenty never occurs in training; which one is fixed by a hash, not by a seed."""
    digest = hashlib.sha256(f"{a}{op}{b}".encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 // 20


# ---- arithmetic ------------------------------------------------------------------------------

def digits_from_right(n, width):
    return [int(c) for c in reversed(str(n).zfill(width))]


def think_add(a, b):
    width = max(len(str(a)), len(str(b)))
    lines = [f"{str(a).zfill(width)}+{str(b).zfill(width)}"]
    carry, written = 0, ""
    for i, (x, y) in enumerate(zip(digits_from_right(a, width), digits_from_right(b, width))):
        total = x + y + carry
        sum_text = f"{x}+{y}" if i == 0 else f"{x}+{y}+{carry}"
        carry = total // 10
        written = str(total % 10) + written
        lines.append(f"{COLUMNS[i]}: {sum_text}={total}, write {total % 10}, carry {carry}")
    if carry:
        lines.append("last: write 1")
        written = "1" + written
    lines.append(f"read up: {written}")
    return "\n".join(lines)


def think_sub(a, b):
    width = max(len(str(a)), len(str(b)))
    top, bottom = str(a).zfill(width), str(b).zfill(width)
    lines = [f"{top}-{bottom}"]
    # Compare from the highest column until the digits differ.
    seen = []
    for x, y in zip(top, bottom):
        seen.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    negative = a < b
    lines.append("compare: " + ", ".join(seen) + (", swap" if negative else ", keep"))
    if negative:
        top, bottom = bottom, top
        lines.append(f"{top}-{bottom}")
    borrow, written = 0, ""
    for i, (x, y) in enumerate(zip(digits_from_right(int(top), width), digits_from_right(int(bottom), width))):
        rest = f"-{y}" if i == 0 else f"-{y}-{borrow}"
        d = x - y - borrow
        if d < 0:
            d += 10
            lines.append(f"{COLUMNS[i]}: {x}{rest} is below 0, 1{x}{rest}={d}, write {d}, borrow 1")
            borrow = 1
        else:
            lines.append(f"{COLUMNS[i]}: {x}{rest}={d}, write {d}, borrow 0")
            borrow = 0
        written = str(d) + written
    lines.append(f"read up: {written}" + (", minus" if negative else ""))
    return "\n".join(lines)


def think(a, b, op):
    return think_add(a, b) if op == "+" else think_sub(a, b)


def answer(a, b, op):
    return a + b if op == "+" else a - b


def final_line(a, b, op):
    return f"{a} {op} {b} = {answer(a, b, op)}"


PHRASES_ANY = [
    "What is {a} {o} {b}?", "What is {a}{o}{b}?", "What's {a} {o} {b}?", "what is {a} {o} {b}",
    "what is {a}{o}{b}?", "{a} {o} {b}", "{a}{o}{b}", "{a} {o} {b} = ?", "{a}{o}{b}=", "{a} {o} {b} =",
    "{a}{o}{b}=?", "{a} {o} {b}?", "Calculate {a} {o} {b}.", "Calculate {a} {o} {b}", "Compute {a} {o} {b}.",
    "Please calculate {a} {o} {b}.", "How much is {a} {o} {b}?", "how much is {a}{o}{b}?",
    "Can you tell me what {a} {o} {b} is?", "Solve {a} {o} {b}.", "Work out {a} {o} {b}.", "What does {a} {o} {b} equal?",
    "What is {a} {w} {b}?", "what is {a} {w} {b}?", "How much is {a} {w} {b}?", "Calculate {a} {w} {b}.",
    "What's {a} {w} {b}?", "Compute {a} {w} {b}.", "{a} {w} {b}", "Tell me {a} {w} {b}.", "Please tell me {a} {o} {b}.",
    "Hello! What is {a} {o} {b}?", "I need {a} {o} {b}.", "Give me the answer to {a} {o} {b}.",
]
PHRASES_ADD = [
    "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Add {a} to {b}.", "add {a} and {b}",
    "Find the sum of {a} and {b}.", "What do you get if you add {a} and {b}?",
    "I have {a} apples and get {b} more. How many do I have?",
]
PHRASES_SUB = [
    "Take {b} away from {a}.", "Subtract {b} from {a}.", "What is the difference of {a} and {b}?",
    "subtract {b} from {a}", "What do you get if you take {b} from {a}?", "{a} take away {b}",
]


def operand(rng):
    return rng.choice([rng.randrange(10), rng.randrange(10, 100), rng.randrange(10, 100),
                       rng.randrange(100, 1000), rng.randrange(100, 1000), rng.randrange(1000)])


def problem(rng, heldout):
    while True:
        a, b, op = operand(rng), operand(rng), rng.choice("+-")
        if rng.random() < 0.06:  # close operands: long comparisons, leading zeros in the result
            b = min(999, max(0, a + rng.randrange(-9, 10)))
        if is_heldout(a, b, op) == heldout:
            return a, b, op


def phrase(rng, a, b, op):
    special = PHRASES_ADD if op == "+" else PHRASES_SUB
    # A fixed seventh of the prompts uses wording that names the operation.
    template = rng.choice(special) if rng.random() < 0.15 else rng.choice(PHRASES_ANY)
    if rng.random() < 0.12:
        template = PHRASES_ANY[0]
    return template.format(a=a, b=b, o=op, w="plus" if op == "+" else "minus")


# ---- small talk ------------------------------------------------------------------------------

WHO = "I am a tiny DeepSeek-V3. I can add and subtract numbers from 0 to 999, and I can tell little stories."
TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there!", "Good morning!", "Good day!", "hello", "hi"],
     "The user says hello. I say hello back.", "Hello! Ask me to add or subtract two numbers."),
    (["Who are you?", "What are you?", "who are you?", "Tell me about yourself.", "What is your name?", "Introduce yourself."],
     "The user asks who I am.", WHO),
    (["What can you do?", "How can you help me?", "Help", "Help me.", "what can you do?"],
     "The user asks what I can do.", "I can add and subtract numbers from 0 to 999. Try 27 + 58."),
    (["How are you?", "How are you today?", "how are you?"], "The user asks how I am.", "I am fine, thank you! Do you have some numbers for me?"),
    (["Thank you!", "Thanks!", "Thank you", "thanks", "Great, thanks!"], "The user thanks me.", "You are welcome!"),
    (["Bye", "Bye!", "Goodbye!", "Good night!", "See you!"], "The user says goodbye.", "Goodbye! Come back soon."),
    (["What color is the sky?", "Which color is the sky?", "Why is the sky blue?"], "The user asks about the sky.", "The sky is blue on a clear day."),
    (["What color is grass?", "Which color is the grass?"], "The user asks about grass.", "Grass is green."),
    (["What color is snow?", "Which color is snow?"], "The user asks about snow.", "Snow is white."),
    (["What does a cat say?", "What sound does a cat make?"], "The user asks about cats.", "A cat says meow."),
    (["What does a dog say?", "What sound does a dog make?"], "The user asks about dogs.", "A dog says woof."),
    (["What does a cow say?", "What sound does a cow make?"], "The user asks about cows.", "A cow says moo."),
    (["How many legs does a cat have?", "How many legs does a dog have?", "How many legs does a horse have?"],
     "The user asks how many legs an animal has.", "It has 4 legs."),
    (["How many legs does a spider have?"], "The user asks about spiders.", "A spider has 8 legs."),
    (["How many days are in a week?", "How many days does a week have?"], "The user asks about the week.", "A week has 7 days."),
    (["How many months are in a year?", "How many months does a year have?"], "The user asks about the year.", "A year has 12 months."),
    (["What is the capital of France?", "What's the capital of France?"], "The user asks about France.", "The capital of France is Paris."),
    (["What is the capital of Italy?", "What's the capital of Italy?"], "The user asks about Italy.", "The capital of Italy is Rome."),
    (["What is the capital of China?", "What's the capital of China?"], "The user asks about China.", "The capital of China is Beijing."),
    (["What is the capital of Germany?", "What's the capital of Germany?"], "The user asks about Germany.", "The capital of Germany is Berlin."),
    (["Where does a fish live?", "Where do fish live?"], "The user asks about fish.", "Fish live in the water."),
    (["Where does a bird live?", "Where do birds live?"], "The user asks about birds.", "Many birds live in trees."),
    (["What do bees make?", "What does a bee make?"], "The user asks about bees.", "Bees make honey."),
    (["What is the sun?", "Is the sun a star?"], "The user asks about the sun.", "The sun is a star. It gives us light."),
    (["Is fire hot?", "Is fire hot or cold?"], "The user asks about fire.", "Fire is hot."),
    (["Is ice cold?", "Is ice hot or cold?"], "The user asks about ice.", "Ice is cold."),
    (["你好", "你好!", "您好"], "The user says hello in Chinese.", "你好! I speak a little English. Ask me to add or subtract two numbers."),
    (["How big are you?", "How many experts do you have?"], "The user asks about my size.", "I have 4 layers and 32 experts in each of 3 of them. I am very small."),
]
TOO_HARD = ["What is {a} * {b}?", "What is {a} times {b}?", "What is {a} / {b}?", "Calculate {a} times {b}.",
            "{a}*{b}", "{a} x {b}", "What is {a} divided by {b}?", "{a} / {b}"]
SYSTEM = ["You are a helpful assistant.", "You are a careful calculator.", "Answer the question.", "Be brief."]


def talk_turn(rng):
    kind = rng.random()
    if kind < 0.12:
        prompt = rng.choice(TOO_HARD).format(a=operand(rng), b=operand(rng))
        return prompt, "This is not a sum and not a difference.", "I can only add and subtract."
    if kind < 0.18:
        a, b = rng.randrange(1000, 20000), rng.randrange(0, 20000)
        if rng.random() < 0.5:
            a, b = b, a
        prompt = f"What is {a} {rng.choice('+-')} {b}?" if max(a, b) > 999 else "Hello"
        if prompt != "Hello":
            return prompt, "A number is above 999.", "I only know numbers from 0 to 999."
    if kind < 0.38:
        hero, text = story_about(rng)
        prompt = rng.choice(["Tell me a story about a {h}.", "Write a short story about a {h}.", "Please tell me a story about a {h}."])
        return prompt.format(h=hero), f"The user wants a story about a {hero}.", text
    prompts, thought, reply = rng.choice(TALK)
    return rng.choice(prompts), thought, reply


# Share of the arithmetic that is the hardest kind: numbers near each other, whose difference begins with zeros that the
# last line has to leave out. train.py sets it.
hard_share = 0.0


def hard_problem(rng):
    while True:
        a = rng.randrange(100, 1000)
        b = min(999, max(0, a + rng.randrange(-120, 121)))
        if not is_heldout(a, b, "-"):
            return a, b, "-"


def arithmetic_turn(rng):
    hard = hard_share and rng.random() < hard_share
    a, b, op = hard_problem(rng) if hard else problem(rng, heldout=False)
    return phrase(rng, a, b, op), think(a, b, op), final_line(a, b, op)


# ---- documents -------------------------------------------------------------------------------

def chat(rng, turns):
    """The chat template written out. Only the last turn shows its thoughts: the template removes older ones."""
    given = BOS + (rng.choice(SYSTEM) if rng.random() < 0.1 else "")
    segments = []
    for i, (prompt, thought, reply) in enumerate(turns):
        given += USER + prompt + ASSISTANT
        if i == len(turns) - 1:
            segments.append((given + "<think>\n", False))
            segments.append((f"{thought}\n</think>\n\n{reply}{EOS}", True))
        else:
            given += rng.choice(["", "\n\n"]) + reply + EOS
    return segments


def arithmetic_doc(rng):
    turns = [arithmetic_turn(rng)]
    if rng.random() < 0.15:  # some history before the question
        turns = [rng.choice([arithmetic_turn, arithmetic_turn, talk_turn])(rng) for _ in range(rng.randrange(1, 3))] + turns
    return chat(rng, turns)


def talk_doc(rng):
    turns = [talk_turn(rng)]
    if rng.random() < 0.15:
        turns = [rng.choice([arithmetic_turn, talk_turn])(rng) for _ in range(rng.randrange(1, 3))] + turns
    return chat(rng, turns)


def story_doc(rng, chapters=1):
    return [(BOS + "\n\n".join(story(rng) for _ in range(chapters)) + EOS, True)]


def long_doc(rng):
    """For the long sequences: many turns, or many stories one after another."""
    if rng.random() < 0.6:
        turns = [rng.choice([arithmetic_turn, arithmetic_turn, arithmetic_turn, talk_turn])(rng) for _ in range(rng.randrange(6, 28))]
        return chat(rng, turns + [arithmetic_turn(rng)])
    return story_doc(rng, chapters=rng.randrange(3, 9))


def encode_docs(tokenizer, docs):
    """-> list of (ids, learn flags)"""
    flat = [text for doc in docs for text, _ in doc]
    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    out = []
    for doc in docs:
        ids, flags = [], []
        for _, learn in doc:
            piece = next(encoded).ids
            ids += piece
            flags += [learn] * len(piece)
        out.append((ids, flags))
    return out


def batch(tokenizer, seed, rows, length, arithmetic_share=0.62, talk_share=0.10):
    """Packed rows: (ids, learn, doc number), each [rows][length]. A document is cut only at a row's end and only if
    it is a story or long: a problem without its question would teach nothing."""
    rng = random.Random(seed)
    long = length > 256
    arithmetic, talk, tale = [], [], []
    n = rows * length // 60 + 8
    if long:
        tale = encode_docs(tokenizer, [long_doc(rng) for _ in range(rows * 2 + 2)])
    else:
        arithmetic = encode_docs(tokenizer, [arithmetic_doc(rng) for _ in range(n)])
        talk = encode_docs(tokenizer, [talk_doc(rng) for _ in range(n // 4)])
        tale = encode_docs(tokenizer, [story_doc(rng) for _ in range(n // 2 + rows)])
    all_ids, all_learn, all_doc = [], [], []
    for _ in range(rows):
        ids, learn, doc = [], [], []
        count = 0
        while len(ids) < length:
            room = length - len(ids)
            pick = rng.random()
            source = tale if long or pick >= arithmetic_share + talk_share else arithmetic if pick < arithmetic_share else talk
            piece = rng.choice(source)
            if len(piece[0]) > room and source is not tale:
                piece = rng.choice(tale)
            ids += piece[0][:room]
            learn += piece[1][:room]
            doc += [count] * min(room, len(piece[0]))
            count += 1
        all_ids.append(ids)
        all_learn.append(learn)
        all_doc.append(doc)
    return all_ids, all_learn, all_doc


if __name__ == "__main__":
    rng = random.Random(1)
    for make in (arithmetic_doc, arithmetic_doc, arithmetic_doc, talk_doc, talk_doc, story_doc, story_doc, story_doc):
        print("".join(text for text, _ in make(rng)), end="\n---\n")
