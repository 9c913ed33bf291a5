"""Seeded grammar of short children's stories.

A story is one of the `PLOTS`: a sequence of beats, each a tuple of alternative texts, of which one
is taken. A text holds `[this|or that]` choices and `{slots}`; the slots are filled from one `Cast`
for the whole story, so that names, pronouns, objects and places stay the same to its end.
"""

import random
import re
from dataclasses import dataclass

SHE = {"he": "she", "him": "her", "his": "her"}
HE = {"he": "he", "him": "him", "his": "his"}

GIRLS = ("Lily", "Mia", "Anna", "Rosa", "Zoe", "Emma", "Nora", "Ella", "Sara", "Lucy")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo", "Tim", "Jack", "Finn", "Noah", "Paul")
ANIMAL_SHE = ("Daisy", "Bella", "Luna", "Hazel", "Molly", "Poppy", "Ruby", "Tilly", "Coco", "Maya")
ANIMAL_HE = ("Pip", "Oscar", "Bruno", "Toby", "Milo", "Rusty", "Felix", "Bobo", "Otto", "Gus")
ANIMALS = (
    "fox", "rabbit", "bear", "mouse", "duck", "frog", "cat", "dog", "bird", "turtle", "squirrel",
    "hedgehog", "pig", "owl", "lion", "elephant", "monkey", "dragon", "goat", "horse", "wolf",
)  # fmt: skip
CHILDREN = ("girl", "boy")
TRAITS = ("little", "small", "happy", "brave", "kind", "curious", "shy", "clever", "young", "quiet")
COLOURS = ("red", "blue", "green", "yellow", "white", "brown", "orange", "purple")
TOYS = ("ball", "kite", "boat", "drum", "hat", "scarf", "book", "bell", "lamp", "cup", "basket")
FOODS = ("cake", "pie", "soup", "bread", "jam")
FRUITS = ("apples", "berries", "pears", "plums", "nuts", "cherries")
KEY_WORDS = (*GIRLS, *BOYS, *ANIMAL_SHE, *ANIMAL_HE, *ANIMALS, *TOYS, *COLOURS, *FRUITS)
"""The words that a story repeats."""
SEEDS = ("flower", "apple tree", "sunflower", "pumpkin", "rose")
CHILD_HOMES = (
    "in a small village", "in a house by the sea", "in a big town", "on a farm", "near the river",
    "in a white house on a hill",
)  # fmt: skip
ANIMAL_HOMES = (
    "in a green forest", "near a quiet river", "under an old tree", "on a high hill",
    "by a blue lake", "at the edge of a big forest",
)  # fmt: skip
PLACES = (
    "the forest", "the river", "the meadow", "the lake", "the garden", "the hill", "the old bridge",
)  # fmt: skip
SPOTS = (
    "under a bush", "behind a big stone", "in the tall grass", "between two trees",
    "next to the old well", "under a pile of leaves",
)  # fmt: skip
HOBBIES = (
    "sing", "dance", "run", "paint", "look at the stars", "climb", "listen to stories", "play",
    "count the clouds", "make things",
)  # fmt: skip

OPENINGS = (
    "Once upon a time, there was {a_hero}. {He} lived {home} and loved to {hobby}.",
    "Once upon a time, there was {a_hero} who lived {home}. {He} loved to {hobby}.",
    "Once upon a time, {a_hero} lived {home} with {his} family. {He} loved to {hobby}.",
    "Once upon a time, {home}, there lived {a_hero}. Every day {he} liked to {hobby}.",
    "There was once {a_hero}. {He} lived {home} and loved to {hobby}.",
    "Long ago there was {a_hero} who lived {home}. {He} loved to {hobby}.",
    "{A_hero} lived {home}. More than anything, {he} loved to {hobby}.",
)
ENDINGS = (
    "And they lived happily ever after.",
    "It was the best day ever.",
    "{Name} went [home|to bed] with a big smile.",
    "That night, {name} slept [very well|well and had sweet dreams].",
    "And {name} never forgot that day.",
    "The end.",
)
FRIEND_ENDINGS = (
    "From that day on, {name} and {friend} were the best of friends.",
    "{Name} and {friend} are friends to this day.",
)

Beat = tuple[str, ...]
DAY: Beat = ("\nOne day, ", "\nOne [sunny|warm|cold|windy] morning, ", "\nOne afternoon, ")

LOST: tuple[Beat, ...] = (
    (
        "{Name} had {an_obj} and took it everywhere.",
        "{His} best thing was {an_obj}. It was a gift from {his} {elder}.",
    ),
    DAY,
    (
        "{name} could not find the {obj}. {He} looked at home, but it was not there.",
        "{name} played near {place} and lost the {obj}.",
        "the {obj} was gone! {Name} looked and looked, but {he} could not see it.",
    ),
    (
        "{Name} began to cry.",
        "{Name} was very [sad|upset].",
        '"Oh no, where is my {obj}?" said {name}.',
    ),
    (
        '\nThen {a_friend} came by. "Why are you so sad?" asked {friend}. "I lost my {obj}," '
        'said {name}. "[I will help you|Let us look for it together|Do not worry, we will find '
        'it]," said {friend}.',
        '\n{A_friend} [saw|heard] {him} and wanted to help. "Let us look near {place}," said '
        "{friend}.",
    ),
    (
        "They went to {place} and looked everywhere. At last {friend} saw something {colour} "
        "{spot}. It was the {obj}!",
        "The two friends walked to {place}. {Name} looked up and {friend} looked down. There, "
        "{spot}, was the {obj}!",
        "They looked [for a long time|all day]. Then {name} looked {spot}, and there was the "
        "{obj}!",
    ),
    (
        '\n"Thank you, {friend}!" said {name}. {He} was so happy.',
        '\n{Name} jumped for joy. "You are a good friend," {he} said.',
        "\n{Name} gave {friend} a big hug. Then they played with the {obj} until the sun went "
        "down.",
    ),
)
NEW_FRIEND: tuple[Beat, ...] = (
    ("But {name} was often alone.", "But {he} had no one to play with.", "{He} wanted a friend."),
    DAY,
    (
        "{name} went to {place}. There {he} saw {a_friend}.",
        "{name} heard a small sound near {place}. It was {a_friend}.",
        "{a_friend} came to live near {place}.",
    ),
    (
        "{Friend} was shy and hid {spot}.",
        "{Friend} sat {spot} and did not say a word.",
        "{Friend} looked sad and alone.",
    ),
    (
        '\n"Hello, my name is {name}," said {name}. "Do you want to play with me?"',
        '\n{Name} sat down and smiled. "Hello! I am {name}. What is your name?" "I am {friend}," '
        "said the {fkind}.",
        '\n{Name} gave {friend} some {fruit}. "You can have these," {he} said. "I am {name}."',
    ),
    (
        '{Friend} smiled. "Yes, [I would like that|let us play|please]!" {fhe} said.',
        '"You are very kind," said {friend}.',
    ),
    (
        "They played with {an_obj} all day.",
        "They ran to {place} and laughed until the sun went down.",
        "Together they ate {fruit} and told each other stories.",
    ),
    (
        "\nAfter that, {name} was never alone again.",
        "\nNow they meet at {place} every day.",
        '\n"I am happy that I found you," said {name}. "Me too," said {friend}.',
    ),
)
SHARING: tuple[Beat, ...] = (
    (
        "{Name} had {an_obj}. It was new, and {he} did not want to share it.",
        "One day {his} {elder} gave {him} {an_obj}. {Name} was very proud of it.",
    ),
    DAY,
    (
        '{a_friend} came to play. "May I play with your {obj}?" asked {friend}.',
        '{name} met {a_friend} at {place}. {Friend} looked at the {obj}. "May I have a turn?" '
        "{fhe} asked.",
    ),
    ('"No, it is mine!" said {name}.', '"No!" said {name}, and {he} held the {obj} tight.'),
    ("{Friend} was sad and went away.", "{Friend} looked down and walked [home|away] slowly."),
    (
        "\nNow {name} was alone. Playing with the {obj} was not fun any more.",
        "\n{Name} played alone, but {he} did not feel happy.",
    ),
    (
        '{He} told {his} {elder} about it. "Things are more fun when we share," said {his} '
        "{elder}.",
        '{His} {elder} said, "A toy is nice, but a friend is better."',
    ),
    (
        '\nSo {name} went to find {friend}. "I am sorry," {he} said. "Let us play with the '
        '{obj} together."',
        '\n{Name} ran to {friend}. "I am sorry. You can have the first turn," said {name}.',
    ),
    (
        "{Friend} smiled, and they played all day.",
        "They took turns with the {obj} and laughed a lot.",
    ),
    ("{Name} learned that it is good to share.", "Sharing made them both happy."),
)
HURT_BIRD: tuple[Beat, ...] = (
    DAY,
    (
        "{name} walked to {place} and found a baby bird {spot}.",
        "{name} heard a soft cry near {place}. A baby bird sat {spot}.",
    ),
    ("It had fallen out of its nest.", "Its wing was hurt, and it could not fly."),
    (
        '\n"Do not be afraid," said {name}. "I will help you."',
        '\n"Poor little bird," said {name}. {He} wanted to help.',
    ),
    (
        "{He} took the bird home and made a warm bed for it.",
        "{He} ran to {his} {elder}, and together they gave the bird water and a warm bed.",
        "{Name} called {friend_who}, and together they carried the bird home.",
    ),
    (
        "Every day {name} gave it {fruit} and sang to it.",
        "Day after day the little bird grew stronger.",
    ),
    (
        "\nAt last the bird could fly. It flew three times around {name} and up into the blue sky.",
        '\nOne morning the bird spread its wings and flew away. {Name} waved. "Goodbye, little '
        'bird!"',
    ),
    (
        "The next spring it came back and sang a song for {name}.",
        "{Name} was a bit sad, but also very happy.",
        '"You did a kind thing," said {his} {elder}.',
    ),
)
GOT_LOST: tuple[Beat, ...] = (
    (
        '"Do not go too far," {his} {elder} always said.',
        '{His} {elder} told {him}, "Stay close to home."',
    ),
    DAY,
    (
        "{name} saw a {colour} butterfly and ran after it, on and on, past {place}.",
        "{name} wanted to see what was behind {place}. So {he} walked and walked.",
    ),
    (
        "When {he} looked around, {he} did not know where {he} was.",
        "Soon it was dark, and {he} could not find the way home.",
    ),
    (
        '\n"I am lost," said {name}, and {he} began to cry.',
        "\n{Name} was afraid. {He} sat down {spot}.",
    ),
    (
        '{A_friend} heard {him}. "What is wrong?" asked {friend}. "I cannot find my way home," '
        "said {name}.",
        'Just then {a_friend} came by. "Are you lost?" asked {friend}. "Yes," said {name}.',
    ),
    (
        '"Come with me. I know the way," said {friend}.',
        '"Do not cry. I will take you home," said {friend}.',
    ),
    (
        "They walked past {place}, and soon {name} saw {his} home.",
        "{Friend} went first with a small lamp, and {name} followed.",
    ),
    (
        '\n{His} {elder} ran out and gave {him} a big hug. "I was so worried!"',
        "\n{His} {elder} was so happy to see {him}. They all had {food} together.",
    ),
    (
        '"I will stay close to home now," said {name}.',
        "{Name} learned to listen to {his} {elder}.",
    ),
)
COOKING: tuple[Beat, ...] = (
    DAY,
    (
        "{name} and {friend_who} wanted to make {some_food} for {his} {elder}.",
        '{name} was hungry. "Let us make {some_food}," {he} said to {friend_who}.',
        "it was the birthday of {friend_who}. {Name} wanted to make {some_food} as a surprise.",
    ),
    (
        "But there were no {fruit} at home.",
        "{He} needed {fruit}, but the basket was empty.",
    ),
    (
        "\nSo {name} took a basket and went to {place} to find some.",
        '\n"I know where to find {fruit}," said {friend}. They went to {place}.',
    ),
    (
        "{He} found many {fruit} {spot}.",
        "There were so many {fruit} that the basket was soon full.",
    ),
    (
        "Then {he} went home and began to cook. {He} [mixed|stirred] and sang a song.",
        "Back at home {name} worked hard, and soon the house smelled sweet.",
    ),
    (
        "\nThe first try was too [salty|hot|sweet], but {name} did not give up. The second one was "
        "just right.",
        "\nWhen the {food} was ready, {name} called everyone to the table.",
    ),
    (
        '"This is the best {food} in the world!" said {friend}.',
        "Everyone ate the {food}, and not a bit was left.",
        '{His} {elder} tasted the {food} and smiled. "Thank you, {name}!"',
    ),
)
AFRAID: tuple[Beat, ...] = (
    (
        "But {name} was afraid of the dark.",
        "But there was one thing that {name} did not like: the dark.",
    ),
    (
        "\nOne night {he} heard a strange sound.",
        "\nOne night there was a big storm, and all the lights went out.",
    ),
    (
        '"What is that?" {he} whispered. {He} hid under the blanket.',
        "{Name} held {his} {obj} and did not move.",
    ),
    (
        "Then {he} heard the sound again. [Tap, tap, tap|Knock, knock|Hoo, hoo].",
        "{He} thought of a big monster.",
    ),
    (
        '\n"I must be brave," said {name}. {He} took a lamp and opened the door.',
        '\n{His} {elder} came with a lamp. "Let us look together," said {his} {elder}.',
    ),
    (
        "There was no monster. It was only {a_friend}!",
        "Outside stood {a_friend}, all cold and wet.",
    ),
    (
        '"I am sorry. I was afraid of the dark," said {friend}. "Me too," said {name}, and they '
        "both laughed.",
        '"May I come in?" asked {friend}. "Yes, come in. It is warm here," said {name}.',
    ),
    (
        "\nThey drank warm milk and looked at the moon. The dark was not so bad after all.",
        "\nAfter that night, {name} was not afraid any more.",
    ),
)
BUILDING: tuple[Beat, ...] = (
    DAY,
    (
        "{name} wanted to build a [boat|house|bridge|tower].",
        '{name} had an idea. "I will build [a boat|a little house|a tower]!" {he} said.',
    ),
    (
        "{He} worked all day with wood and stones.",
        "{He} took some wood from {place} and began to work.",
    ),
    (
        "But then the wind blew, and everything fell down.",
        "But it was not strong, and it broke.",
    ),
    (
        '\n{Name} wanted to stop. "I cannot do it," {he} said.',
        '\n"It is too hard," said {name}, and {he} sat down {spot}.',
    ),
    (
        '{A_friend} saw it and said, "Try again. I will help you."',
        '{His} {elder} said, "Try again, slowly. {Friend_who} can help you."',
    ),
    (
        "So they tried again. {Name} held the wood, and {friend} [tied|fixed] it with a rope.",
        "{Name} and {friend} worked together. They made it strong with stones from {place}.",
    ),
    (
        "\nThis time it did not fall. It was done!",
        "\nThe wind blew again, but this time nothing broke.",
    ),
    (
        '"We did it!" said {friend}. {Name} was very proud.',
        'They danced and ate {fruit}. "It is easy when we do it together," said {name}.',
    ),
    ("{Name} learned never to give up.", "And so {name} learned that friends make hard work easy."),
)
SEED: tuple[Beat, ...] = (
    DAY,
    ("{name} found a small seed {spot}.", "{his} {elder} gave {name} a small seed."),
    (
        "{He} put it into the ground near {place} and gave it water.",
        '"If you give it water, it will grow," said {his} {elder}. So {name} put the seed into '
        "the ground.",
    ),
    (
        "\n{Name} waited one day, two days, three days. Nothing came up.",
        "\nEvery morning {name} looked, but there was nothing to see.",
    ),
    (
        '"It will never grow," {he} said to {friend_who}. "You must wait," said {friend}.',
        "{Name} was sad, but {he} did not give up. {He} gave it water every day.",
    ),
    (
        "Then the rain came, and after the rain the sun.",
        "{Name} sang to the seed every night.",
    ),
    (
        "\nOne morning there was a little green leaf! It grew and grew, and soon it was a big "
        "{seed}.",
        "\nAnd then, one day, {name} saw something green. The seed was now a beautiful {seed}.",
    ),
    (
        '{Name} showed it to {friend_who}. "It is so beautiful!" said {friend}.',
        'Everyone came to look at it. "Good things need time," said {his} {elder}.',
    ),
)
TREASURE: tuple[Beat, ...] = (
    DAY,
    (
        "{name} found an old key {spot}.",
        "{name} found an old map {spot}. It showed the way to {place}.",
    ),
    (
        '"What can it be for?" {he} asked. {He} ran to {friend_who} to show it.',
        '"Maybe there is a treasure!" said {friend_who}.',
    ),
    (
        "\nThe two friends went to {place}. They looked high and low.",
        "\nTogether they walked to {place}. It was a long way, but they were not tired.",
    ),
    (
        "There, {spot2}, they saw an old box.",
        "They dug a hole, and soon they found an old box.",
    ),
    (
        "It was hard to open. {Name} pulled and {friend} pushed. Click! The box was open.",
        "{Name} opened it slowly.",
    ),
    (
        "\nIn the box was no gold. There was only {an_obj}.",
        "\nInside was {an_obj}, old but beautiful.",
    ),
    (
        '"It is better than gold," said {name}, "because we found it together."',
        '{Name} gave it to {friend}. "The best treasure is a friend," {he} said.',
        'They took it home and showed it to {his} {elder}. "I had it when I was little!" said '
        "{his} {elder}.",
    ),
)
RACE: tuple[Beat, ...] = (
    (
        '{A_friend} lived near {him}. {Friend} always said, "I am the fastest of all!"',
        "{He} had a friend, {a_friend}. {Friend} was very fast.",
    ),
    DAY,
    (
        '{friend} said, "Let us race to {place}!" "Good," said {name}.',
        "they had a race from the old tree to {place}.",
    ),
    (
        "One, two, three, go! {Friend} ran very fast, and {name} was far behind.",
        "{Friend} ran like the wind. {Name} was slow, but {he} did not stop.",
    ),
    (
        "\nBut {friend} did not look at the path, and {fhe} fell over a stone.",
        '\nHalf way, {friend} sat down {spot}. "I have so much time," {fhe} said, and fell asleep.',
    ),
    (
        "{Name} could win now! But {he} stopped to help {friend}.",
        '{Name} came by and woke {friend} up. "Come, let us go on together," {he} said.',
    ),
    (
        "\nThey came to {place} side by side.",
        "\nSo both of them won the race at the same time.",
    ),
    (
        '"You are the kindest of all," said {friend}.',
        '"Thank you for helping me," said {friend}. "A friend is better than a prize."',
    ),
)
RAIN: tuple[Beat, ...] = (
    DAY,
    (
        "{name} and {friend_who} wanted to eat {food} near {place}.",
        "{name} wanted to play near {place} with {friend_who}.",
    ),
    (
        "But then big grey clouds came, and it began to rain.",
        "But as soon as they were there, it started to rain.",
    ),
    (
        '"Oh no, our day is ruined!" said {friend}.',
        '"Now we cannot play," said {friend}, and {fhe} was sad.',
    ),
    (
        "\nThey ran to the house of {name}. {His} {elder} gave them warm milk.",
        '\n"Come to my house!" said {name}. They ran as fast as they could.',
    ),
    (
        "They made a tent from a blanket and played with {an_obj}.",
        "They sat by the fire and told stories about dragons and stars.",
        "They sang songs and ate {fruit} under the table.",
    ),
    (
        "\nWhen the rain stopped, there was a beautiful rainbow over {place}.",
        "\nThen the sun came out again, and they jumped in the water.",
    ),
    (
        '"I like the rain now," said {friend}.',
        '"This was even better than our plan," said {name}.',
    ),
)
PLOTS = (
    LOST, NEW_FRIEND, SHARING, HURT_BIRD, GOT_LOST, COOKING, AFRAID, BUILDING, SEED, TREASURE,
    RACE, RAIN,
)  # fmt: skip
TOY_PLOTS = (LOST, SHARING)
"""The plots that are about the hero's toy."""


@dataclass(frozen=True)
class Character:
    """One who acts in a story: a girl, a boy or an animal."""

    kind: str
    name: str
    trait: str
    pronouns: dict[str, str]

    def introduced(self) -> str:
        """The character as first met, such as "a little fox named Pip"."""
        return f"{with_article(self.trait)} {self.kind} named {self.name}"


@dataclass(frozen=True)
class Cast:
    """What is fixed for one story: hero, friend and the hero's toy with its colour."""

    hero: Character
    friend: Character
    toy: str
    colour: str


def with_article(noun: str) -> str:
    """`noun` behind "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def character(
    rng: random.Random, kind: str | None = None, unlike: Character | None = None
) -> Character:
    """Draws a character, of a given kind or any; it differs from `unlike` in kind and name."""
    if kind is None:
        kinds = [k for k in (*CHILDREN * 3, *ANIMALS) if unlike is None or k != unlike.kind]
        kind = rng.choice(kinds)
    is_she = kind == "girl" or (kind != "boy" and rng.random() < 0.5)
    children, animals = (GIRLS, ANIMAL_SHE) if is_she else (BOYS, ANIMAL_HE)
    names = children if kind in CHILDREN else animals
    free = [name for name in names if unlike is None or name != unlike.name]
    return Character(kind, rng.choice(free), rng.choice(TRAITS), SHE if is_she else HE)


def cast(rng: random.Random, kind: str | None = None) -> Cast:
    """Draws the cast of a story whose hero is of the given kind, or of any."""
    hero = character(rng, kind)
    return Cast(hero, character(rng, unlike=hero), rng.choice(TOYS), rng.choice(COLOURS))


def capitalized(text: str) -> str:
    """`text` with its first letter in upper case and the others as they are."""
    return text[:1].upper() + text[1:]


def slots(rng: random.Random, who: Cast) -> dict[str, str]:
    """The values of all slots for one story; each also under its capitalized name."""
    food = rng.choice(FOODS)
    spot, other_spot = rng.sample(SPOTS, 2)
    hero, friend = who.hero, who.friend
    is_child = friend.kind in CHILDREN
    his = hero.pronouns["his"]
    friend_who = f"{his} friend {friend.name}" if is_child else f"{friend.name} the {friend.kind}"
    values = {
        "name": hero.name,
        "a_hero": hero.introduced(),
        **hero.pronouns,
        "friend": friend.name,
        "a_friend": friend.introduced(),
        "fkind": friend.kind,
        "friend_who": friend_who,
        "fhe": friend.pronouns["he"],
        "elder": rng.choice(("mother", "father", "grandmother", "grandfather")),
        "home": rng.choice(CHILD_HOMES if hero.kind in CHILDREN else ANIMAL_HOMES),
        "hobby": rng.choice(HOBBIES),
        "obj": who.toy,
        "an_obj": with_article(f"{who.colour} {who.toy}"),
        "colour": who.colour,
        "place": rng.choice(PLACES),
        "spot": spot,
        "spot2": other_spot,
        "fruit": rng.choice(FRUITS),
        "food": food,
        "some_food": with_article(food) if food in ("cake", "pie") else f"some {food}",
        "seed": rng.choice(SEEDS),
    }
    return values | {capitalized(key): capitalized(value) for key, value in values.items()}


def expand(rng: random.Random, text: str, values: dict[str, str]) -> str:
    """Takes one alternative of each `[a|b]` in `text` and fills its `{slots}`."""
    chosen = re.sub(r"\[([^]]*)\]", lambda match: rng.choice(match[1].split("|")), text)
    return chosen.format_map(values)


def story(rng: random.Random, who: Cast, about_toy: bool = False) -> str:
    """Writes one story of four or five paragraphs, 80 to 200 words, for the given cast.

    With `about_toy` the plot is one in which the hero's toy matters.
    """
    plot = rng.choice(TOY_PLOTS if about_toy else PLOTS)
    values = slots(rng, who)
    parts = [expand(rng, rng.choice(beat), values) for beat in (OPENINGS, *plot)]
    friend_was_there = any(who.friend.name in part for part in parts)
    endings = ENDINGS + FRIEND_ENDINGS * friend_was_there
    parts.append(expand(rng, rng.choice(endings), values))
    return re.sub(r" *(\n|  ) *", lambda match: match[1][:1], " ".join(parts))
