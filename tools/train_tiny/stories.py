"""A small grammar of children's stories: one hero, a friend, a wish or a trouble, an ending that fits."""

NAMES = [("Lily", "she"), ("Tom", "he"), ("Anna", "she"), ("Ben", "he"), ("Mia", "she"), ("Max", "he"), ("Sara", "she"),
         ("Leo", "he"), ("Nora", "she"), ("Sam", "he"), ("Ella", "she"), ("Jack", "he"), ("Lucy", "she"), ("Tim", "he")]
ANIMALS = ["cat", "dog", "rabbit", "fox", "bear", "mouse", "bird", "frog", "duck", "horse", "pig", "sheep", "squirrel", "hedgehog"]
SIZES = ["little", "small", "young", "old", "big", "tiny"]
NATURES = ["happy", "brave", "shy", "clever", "kind", "curious", "quiet", "funny", "gentle"]
COLORS = ["red", "blue", "green", "yellow", "white", "brown", "black", "orange"]
PLACES = [("in a small house", "house"), ("near the forest", "forest"), ("by the river", "river"), ("on a farm", "farm"),
          ("in a quiet village", "village"), ("at the edge of a lake", "lake"), ("in a tall tower", "tower"), ("under an old tree", "tree"),
          ("on a green hill", "hill"), ("close to the sea", "sea")]
OUTSIDE = ["the forest", "the garden", "the park", "the river", "the meadow", "the beach", "the hill", "the market", "the old bridge", "the lake"]
THINGS = ["ball", "kite", "boat", "hat", "book", "bell", "box", "key", "lamp", "basket", "scarf", "drum", "coin", "shell", "flower", "stone"]
FOODS = ["cake", "bread", "soup", "apples", "honey", "cheese", "berries", "pie", "nuts", "cookies", "milk", "carrots"]
WEATHER = ["The sun was warm and the sky was blue.", "It was a cold day and the wind was strong.", "Soft rain fell on the grass.",
           "White snow lay on the ground.", "It was a bright morning.", "The clouds were big and grey.", "The air smelled of flowers.",
           "It was late and the moon was round."]
TIMES = ["One day", "One morning", "One evening", "One sunny day", "On a windy day", "Early one morning", "One winter day", "One night"]
HELPERS = ["an old woman", "an old man", "a farmer", "a wise owl", "a big bear", "a friendly goat", "a small bee", "a kind baker", "a tired sailor"]
MORALS = ["It is good to have a friend.", "Being kind makes everyone happy.", "It is good to share.", "A small one can do big things.",
          "It is never too late to say sorry.", "It is good to ask for help.", "If you try again, you can do it.", "A true friend does not leave you alone."]
ENDS = ["They were happy for the rest of the day.", "That night {he} slept very well.", "From that day on they were best friends.",
        "And {he} never forgot that day.", "They laughed all the way home.", "Then they all went home and ate {food}.",
        "When the stars came out, everyone was happy.", "{He} smiled and closed {his} eyes."]

POSSESSIVE = {"he": "his", "she": "her", "it": "its"}
OBJECT = {"he": "him", "she": "her", "it": "it"}


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def character(rng, kind=None):
    """A name with its pronouns and what it is."""
    name, pronoun = rng.choice(NAMES)
    if kind is None:
        kind = rng.choice(["girl" if pronoun == "she" else "boy", rng.choice(ANIMALS)])
    return {"name": name, "he": pronoun, "his": POSSESSIVE[pronoun], "him": OBJECT[pronoun], "kind": kind}


def setting(rng, hero):
    """The first lines of a story, and the words they introduce."""
    return rng.choice([
        "Once upon a time there was {a_size} {kind} named {name}. {He} lived {where}.",
        "There once was {a_nature} {kind} called {name} who lived {where}.",
        "{name} was {a_nature} {kind}. {He} lived {where} with {his} {family}.",
        "Once upon a time, {where}, there lived {a_size} {kind}. {His} name was {name}.",
        "{name} the {kind} lived {where}. {He} was very {nature}.",
    ])


PLOTS = [
    # A lost thing.
    ["{He} had {a_color} {thing}, and {he} loved it very much. {time}, {name} could not find the {thing}. {He} looked under the bed and behind the door, but it was not there.",
     "{name} had {a_color} {thing}. {time} {he} took it to {outside}. {weather} {name} played for a long time. When {he} wanted to go home, the {thing} was gone."],
    # A wish.
    ["{name} wanted to find {a_color} {thing}. {time}, {he} went to {outside}. {weather}",
     "More than anything, {name} wanted {a_color} {thing}. \"I will look for one,\" {he} said. {time} {he} walked to {outside}. {weather}"],
    # Someone needs help.
    ["{time}, {name} went for a walk to {outside}. {weather} There {he} saw {friend} the {fkind}. {friend} was crying. \"What is wrong?\" asked {name}. \"I lost my {thing},\" said {friend}.",
     "{time} {name} heard a sound from {outside}. It was {friend} the {fkind}. \"Please help me!\" said {friend}. \"My {thing} fell into the water.\""],
    # A meal.
    ["{time}, {name} wanted to make {food}. But there was not enough at home. So {he} took {a_color} basket and went to {outside}. {weather}",
     "{name} was hungry. {He} wanted to eat {food}. {time}, {he} went to {outside} to look for some. {weather}"],
    # A fear.
    ["{name} was afraid of the dark. {time}, {he} had to go to {outside} alone. {weather} {He} heard a strange sound and stopped.",
     "{name} was afraid of the water. {time}, {his} friends went to {outside} to swim. {weather} {name} sat on the grass and watched them."],
]
MIDDLES = [
    # A lost thing.
    ["On the way {he} met {helper}. \"Did you see my {thing}?\" asked {name}. \"Yes,\" was the answer. \"It is behind the big tree.\" {name} ran to the tree, and there was the {thing}!",
     "{name} was sad. Then {his} friend {friend} the {fkind} came. \"We will find it together,\" said {friend}. They looked here and there. At last {friend} found the {thing} under {a_color2} bush. \"Thank you!\" said {name}."],
    # A wish.
    ["{He} walked and walked. Then {he} met {helper}. \"I have {a_color} {thing},\" said the stranger, \"but I am hungry.\" {name} gave away all {his} {food}. Then the stranger gave {him} the {thing}.",
     "{friend} the {fkind} came along. \"What are you looking for?\" asked {friend}. \"I want {a_color} {thing},\" said {name}. \"I have two,\" said {friend}. \"You can have one.\" {name} was so happy that {he} jumped up and down."],
    # Someone needs help.
    ["\"Do not cry,\" said {name}. \"I will help you.\" They looked for a long time. Then {name} saw something {color} in the grass. It was the {thing}! {friend} was very happy.",
     "{name} was not afraid. {He} took a long stick and pulled. It was hard, but {he} did not stop. Soon the {thing} was back. \"You are so {nature}!\" said {friend}."],
    # A meal.
    ["There {he} met {helper}. \"Help me to carry this {thing},\" said the stranger, \"and I will give you what you need.\" {name} helped, and soon the basket was full. Then {he} made {food} for everyone.",
     "{name} found a lot of good things there. On the way back {he} saw {friend} the {fkind}, who was hungry too. So {name} shared the {food} with {friend}. It was very good."],
    # A fear.
    ["Then a small light came near. It was {friend} the {fkind} with {a_color} lamp. \"Do not be afraid,\" said {friend}. \"Take my hand.\" They went on together, and {name} was not afraid any more.",
     "Then {friend} the {fkind} sat down next to {him}. \"I was afraid too,\" said {friend}. \"We can try together, step by step.\" {name} tried. It was hard at first, but then it was fun."],
]
FAMILIES = ["mother", "father", "grandmother", "grandfather", "two brothers", "big sister", "parents"]


def tell(rng, hero):
    friend = character(rng)
    while friend["name"] == hero["name"] or friend["kind"] in ("boy", "girl"):
        friend = character(rng)
    color = rng.choice(COLORS)
    words = dict(hero, size=rng.choice(SIZES), nature=rng.choice(NATURES), color=color, where=rng.choice(PLACES)[0],
                 outside=rng.choice(OUTSIDE), thing=rng.choice(THINGS), food=rng.choice(FOODS), weather=rng.choice(WEATHER),
                 time=rng.choice(TIMES), helper=rng.choice(HELPERS), friend=friend["name"], fkind=friend["kind"],
                 family=rng.choice(FAMILIES))
    words["a_size"] = article(words["size"])
    words["a_nature"] = article(words["nature"])
    words["a_color"] = article(color)
    words["a_color2"] = article(rng.choice(COLORS))
    words["He"] = words["he"].capitalize()
    words["His"] = words["his"].capitalize()
    plot = rng.randrange(len(PLOTS))
    parts = [setting(rng, hero), rng.choice(PLOTS[plot]), rng.choice(MIDDLES[plot])]
    if rng.random() < 0.4:
        parts.append(rng.choice(MORALS))
    parts.append(rng.choice(ENDS))
    breaks = [rng.choice([" ", " ", "\n"]) for _ in parts]
    text = "".join(p + b for p, b in zip(parts, breaks)).strip().format(**words)
    return text


def story(rng):
    return tell(rng, character(rng))


def story_about(rng):
    """-> (kind of animal, its story)"""
    kind = rng.choice(ANIMALS)
    return kind, tell(rng, character(rng, kind))
