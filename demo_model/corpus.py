"""Seeded corpus of the demo model: plain stories and chats in InternLM2's chat form.

Document `index` depends on nothing but `seed` and `index`, so any part of the endless corpus can be
made again; training reads the indices from 0 up, the held-out part begins at `HELD_OUT_START`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo_model.stories import (
    ANIMAL_HE,
    ANIMAL_SHE,
    ANIMALS,
    BOYS,
    CHILDREN,
    GIRLS,
    KEY_WORDS,
    Cast,
    capitalized,
    cast,
    story,
    with_article,
)

HELD_OUT_START = 10**9
"""Index of the first held-out document; training never gets that far."""
STORY_SHARE = 0.4
"""Share of plain stories among the documents; the others are chats."""

SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "pig": "oink", "sheep": "baa",
    "bee": "buzz", "owl": "hoo", "lion": "roar", "frog": "croak", "mouse": "squeak",
    "horse": "neigh",
}  # fmt: skip
THING_COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a lemon": "yellow",
    "a tomato": "red", "the night": "black", "a banana": "yellow", "milk": "white",
    "a leaf": "green", "the sea": "blue", "chocolate": "brown", "a frog": "green", "blood": "red",
    "an orange": "orange", "an elephant": "grey", "a strawberry": "red",
}  # fmt: skip
LEGS = {
    "dog": "four", "cat": "four", "spider": "eight", "bird": "two", "duck": "two",
    "horse": "four", "bee": "six", "snake": "no", "fish": "no", "cow": "four", "ant": "six",
    "chair": "four",
}  # fmt: skip
ANIMAL_HOMES = {
    "fish": "in the water", "bird": "in a nest", "bear": "in the forest", "lion": "in the grass",
    "camel": "in the desert", "bee": "in a hive", "fox": "in a den", "frog": "near the water",
    "monkey": "in the trees", "penguin": "in the cold south", "mouse": "in a small hole",
    "whale": "in the sea",
}  # fmt: skip
ANIMAL_FOODS = {
    "rabbit": "grass and carrots", "cat": "fish and mice", "cow": "grass", "monkey": "bananas",
    "squirrel": "nuts", "bear": "honey and berries", "mouse": "cheese and seeds", "horse": "hay",
    "panda": "bamboo", "lion": "meat", "duck": "bread and small plants",
}  # fmt: skip
ANIMAL_TOPICS: tuple[tuple[tuple[str, ...], dict[str, str], str], ...] = (
    (
        ("What does {} say?", "What sound does {} make?", "How does {} speak?"),
        SOUNDS,
        "says {}",
    ),
    (("What does {} eat?", "What does {} like to eat?"), ANIMAL_FOODS, "eats {}"),
    (("Where does {} live?", "Where can I find {}?"), ANIMAL_HOMES, "lives {}"),
    (("How many legs does {} have?",), LEGS, "has {} legs"),
)
"""Questions, the facts asked for, and the form of the answer."""
OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("happy", "sad"), ("fast", "slow"), ("day", "night"),
    ("up", "down"), ("old", "young"), ("wet", "dry"), ("light", "dark"), ("good", "bad"),
    ("open", "closed"), ("loud", "quiet"), ("hard", "soft"), ("full", "empty"), ("long", "short"),
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SYSTEM_NAMES = ("Momo", "Kiki", "Bibi", "Nono", "Lulu", "Zaza", "Toto", "Fifi")
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly storyteller.",
    "You are a kind teacher for small children.",
    "You are a tiny model that tells stories.",
    "Answer in one short sentence.",
)
GREETINGS = ("Hello!", "Hi!", "Hi there!", "Good morning!", "Hello", "Hi", "Hey!", "Good evening!")
WELCOMES = (
    "Hello! How can I help you?",
    "Hello! Would you like to hear a story?",
    "Hi! It is nice to meet you. How can I help you?",
)
SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("What is your name?", "What's your name?", "Who are you?", "Tell me your name."),
        ("My name is Demo. I am a tiny model that tells stories.",),
    ),
    (
        ("How are you?", "How are you today?", "How do you do?"),
        ("I am very well, thank you. How are you?", "I am happy today. And you?"),
    ),
    (
        ("What can you do?", "Can you help me?", "What do you know?", "Help"),
        (
            "I can tell stories and answer small questions about animals, colours and sums.",
            "I can tell you a story. I also know some animals, colours and small sums.",
        ),
    ),
    (
        ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"),
        ("You are welcome!", "You are welcome! I am happy to help."),
    ),
    (
        ("Goodbye!", "Bye!", "Good night!", "See you tomorrow!"),
        ("Goodbye! Have a nice day.", "Goodbye! Come back soon."),
    ),
    (
        ("I am sad.", "I feel sad today.", "I am not happy."),
        ("I am sorry to hear that. Maybe a story can make you smile.",),
    ),
    (
        ("I am happy!", "I feel good today.", "Today is a good day."),
        ("That is wonderful! I am happy for you.",),
    ),
    (
        ("Are you a robot?", "Are you real?", "Are you a human?"),
        ("I am not a human. I am a tiny language model.",),
    ),
    (
        ("How big are you?", "How many parameters do you have?", "Are you big?"),
        ("I am very small. I have about one million parameters.",),
    ),
    (
        ("How old are you?", "Where do you live?", "Do you have a mother?"),
        ("I am a tiny model, so I have no age and no home. I live in your computer.",),
    ),
    (
        ("Do you like stories?", "What do you like?", "What is your favourite thing?"),
        ("I love stories! Shall I tell you one?",),
    ),
)
UNKNOWN = (
    "Who was the first king of {x}?", "What is the capital of {x}?", "How do I fix my {x}?",
    "Write a letter about {x}.", "Explain {x} to me.", "What is the price of {x}?",
    "Who wrote {x}?", "Translate {x} into French.", "What happened in {x}?",
    "Write a program for {x}.", "What is {x}?", "Tell me about {x}.",
)  # fmt: skip
UNKNOWN_THINGS = (
    "France", "China", "Rome", "Spain", "history", "physics", "the law", "a computer", "my car",
    "the internet", "music", "money", "1984", "the war", "chess", "Python", "Mars", "medicine",
)  # fmt: skip
DO_NOT_KNOW = (
    "I am sorry, I do not know that. I am a very small model.",
    "I do not know that. I only know stories, animals, colours and small sums.",
)


@dataclass(frozen=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """One training document: a plain story, or the messages of a chat."""

    text: str = ""
    messages: tuple[Message, ...] = ()


Exchange = tuple[str, str]
"""What the user says and what the assistant answers."""


def story_subject(rng: random.Random, who: Cast) -> tuple[str, bool]:
    """A phrase for what the story is about, and whether the hero's toy is part of it."""
    hero = who.hero
    subject = rng.choice(
        (
            with_article(hero.kind),
            with_article(hero.kind),
            f"{with_article(hero.kind)} named {hero.name}",
            hero.introduced(),
            f"{with_article(hero.trait)} {hero.kind}",
        )
    )
    if rng.random() < 0.2:
        return f"{subject} and {with_article(f'{who.colour} {who.toy}')}", True
    return subject, False


def story_request(rng: random.Random) -> Exchange:
    """A wish for a story, of a given hero or of any, and the story."""
    who = cast(rng, rng.choice(ANIMALS if rng.random() < 0.75 else CHILDREN))
    if rng.random() < 0.25:
        wish = rng.choice(
            ("Tell me a story.", "Can you tell me a story?", "I want to hear a story.",
             "Write a short story.", "Please tell me a story.", "A story, please!",
             "Write a story for children.", "Tell me another story.")
        )  # fmt: skip
        return wish, story(rng, who)
    subject, about_toy = story_subject(rng, who)
    wish = rng.choice(
        ("Tell me a story about {}.", "Tell me a story about {}.", "Write a story about {}.",
         "Can you tell me a story about {}?", "Please write a short story about {}.",
         "I want a story about {}.", "Do you know a story about {}?", "A story about {}, please.")
    )  # fmt: skip
    return wish.format(subject), story(rng, who, about_toy)


def story_and_question(rng: random.Random) -> list[Exchange]:
    """A story, and a question about the names or the toy in it."""
    who = cast(rng)
    subject, about_toy = story_subject(rng, who)
    told = story(rng, who, about_toy)
    hero, friend = who.hero, who.friend
    questions = [
        (f"What was the name of the {hero.kind}?", f"The {hero.kind} was named {hero.name}."),
        (f"Who was {hero.name}?", f"{hero.name} was {with_article(hero.kind)}."),
    ]
    if friend.name in told:
        questions.append(
            (f"Who was the friend of {hero.name}?", f"The friend of {hero.name} was {friend.name}.")
        )
    if f"{who.colour} {who.toy}" in told:
        questions.append(
            (f"What colour was the {who.toy}?", f"The {who.toy} was {who.colour}.")
        )  # fmt: skip
    return [(f"Tell me a story about {subject}.", told), rng.choice(questions)]


def small_talk(rng: random.Random) -> Exchange:
    """A remark out of `SMALL_TALK`, or a greeting."""
    if rng.random() < 0.2:
        return rng.choice(GREETINGS), rng.choice(WELCOMES)
    remarks, answers = rng.choice(SMALL_TALK)
    return rng.choice(remarks), rng.choice(answers)


def repetition(rng: random.Random) -> Exchange:
    """A wish to repeat some words. What it teaches, stories need: to say again what was said."""
    words = [rng.choice(KEY_WORDS) for _ in range(rng.randint(2, 12))]
    ask = rng.choice(("Repeat: {}", "Please repeat these words: {}", "Say this again: {}"))
    said = ", ".join(words) + "."
    return ask.format(said), capitalized(said)


def introduction(rng: random.Random) -> list[Exchange]:
    """The user says a name and perhaps what animal lives at home, and asks for it later."""
    name, animal = rng.choice(GIRLS + BOYS), rng.choice(ANIMALS)
    pet = rng.choice(ANIMAL_SHE + ANIMAL_HE)
    turns = [
        (f"{rng.choice(('My name is', 'I am', 'Hello, I am'))} {name}.",
         f"Hello, {name}! It is nice to meet you."),
        (f"I have {with_article(animal)} named {pet}.",
         f"{pet} is a good name for {with_article(animal)}."),
    ]  # fmt: skip
    questions = [
        ("What is my name?", f"Your name is {name}."),
        (f"What is the name of my {animal}?", f"Your {animal} is named {pet}."),
    ]
    if rng.random() < 0.5:
        return [turns[0], questions[0]]
    return [*turns, rng.choice(questions)]


def sum_question(rng: random.Random) -> Exchange:
    """A sum or a difference of numbers up to ten."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.7:
        ask = rng.choice(("What is {} plus {}?", "What is {} + {}?", "How much is {} and {}?"))
        return ask.format(a, b), f"{a} plus {b} is {a + b}."
    high, low = max(a, b), min(a, b)
    ask = rng.choice(("What is {} minus {}?", "What is {} - {}?"))
    return ask.format(high, low), f"{high} minus {low} is {high - low}."


def colour_question(rng: random.Random) -> Exchange:
    """The colour of a common thing."""
    thing, colour = rng.choice(list(THING_COLOURS.items()))
    ask = rng.choice(("What colour is {}?", "What color is {}?", "Which colour does {} have?"))
    return ask.format(thing), f"{capitalized(thing)} is {colour}."


def animal_question(rng: random.Random) -> Exchange:
    """What an animal says or eats, where it lives, how many legs it has."""
    asks, animals, answer = rng.choice(ANIMAL_TOPICS)
    animal, fact = rng.choice(list(animals.items()))
    an_animal = with_article(animal)
    question = rng.choice(asks).format(an_animal)
    return question, f"{capitalized(an_animal)} {answer.format(fact)}."


def word_question(rng: random.Random) -> Exchange:
    """The opposite of a word, or the day before or after a day."""
    if rng.random() < 0.6:
        pair = list(rng.choice(OPPOSITES))
        rng.shuffle(pair)
        ask = rng.choice(("What is the opposite of {}?", "What is the opposite of the word {}?"))
        return ask.format(pair[0]), f"The opposite of {pair[0]} is {pair[1]}."
    day = rng.randrange(7)
    side, other = rng.choice((("after", DAYS[(day + 1) % 7]), ("before", DAYS[day - 1])))
    return f"Which day comes {side} {DAYS[day]}?", f"{other} comes {side} {DAYS[day]}."


def unknown_question(rng: random.Random) -> Exchange:
    """A question beyond the model, which it declines."""
    ask = rng.choice(UNKNOWN).format(x=rng.choice(UNKNOWN_THINGS))
    return ask, rng.choice(DO_NOT_KNOW)


QUESTIONS: tuple[Callable[[random.Random], Exchange], ...] = (
    small_talk, small_talk, small_talk, sum_question, sum_question, sum_question, colour_question,
    animal_question, animal_question, word_question, unknown_question,
)  # fmt: skip


def typed(rng: random.Random, question: str) -> str:
    """`question` as people type it: now and then in lower case or with no mark at its end."""
    if rng.random() < 0.15:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip(".?!")
    return question


def exchanges(rng: random.Random) -> list[Exchange]:
    """The turns of one chat: one to four short ones, or stories."""
    draw = rng.random()
    if draw < 0.3:
        return [story_request(rng)]
    if draw < 0.42:
        return story_and_question(rng)
    if draw < 0.54:
        return [repetition(rng) for _ in range(rng.randint(1, 3))]
    if draw < 0.64:
        return introduction(rng)
    turns = [rng.choice(QUESTIONS)(rng) for _ in range(rng.choice((1, 2, 3, 4)))]
    if draw < 0.7:
        turns.append(story_request(rng))
    return turns


def chat(rng: random.Random) -> tuple[Message, ...]:
    """One chat, in three of ten with a system message before it."""
    messages: list[Message] = []
    turns = exchanges(rng)
    if rng.random() < 0.2:
        messages.append(Message("system", rng.choice(SYSTEMS)))
    elif rng.random() < 0.12:
        name = rng.choice(SYSTEM_NAMES)
        messages.append(Message("system", f"You are {name}, a friendly robot."))
        ask = rng.choice(("What is your name?", "Who are you?", "What's your name?"))
        turns.insert(0, (ask, f"My name is {name}. I am a friendly robot."))
        turns = turns[: rng.randint(1, 2)]
    for question, answer in turns:
        messages.append(Message("user", typed(rng, question)))
        messages.append(Message("assistant", answer))
    return tuple(messages)


def document(seed: int, index: int) -> Document:
    """Document `index` of the corpus that belongs to `seed`."""
    rng = random.Random(f"{seed}/{index}")
    if rng.random() < STORY_SHARE:
        return Document(text=story(rng, cast(rng)))
    return Document(messages=chat(rng))


def documents(seed: int, start: int = 0) -> Iterator[Document]:
    """All documents of the corpus from index `start` on, without an end."""
    index = start
    while True:
        yield document(seed, index)
        index += 1
