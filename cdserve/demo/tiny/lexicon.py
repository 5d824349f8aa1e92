"""The phrases of the demo's reviews, with their valences in [-1, 1].

All phrases that carry sentiment are listed here: ``grammar`` writes them, ``reward`` reads them.
"""

Lexicon = dict[str, float]

MODIFIERS: Lexicon = {  # factors on the valence of the adjective that follows
    "very": 1.15,
    "truly": 1.1,
    "quite": 0.9,
    "rather": 0.8,
    "somewhat": 0.65,
    "a little": 0.55,
}

ADJECTIVES: Lexicon = {
    "superb": 0.93,
    "wonderful": 0.89,
    "excellent": 0.86,
    "delightful": 0.82,
    "brilliant": 0.85,
    "impressive": 0.69,
    "charming": 0.72,
    "lovely": 0.66,
    "memorable": 0.61,
    "clever": 0.57,
    "satisfying": 0.54,
    "good": 0.48,
    "pleasant": 0.45,
    "likeable": 0.42,
    "solid": 0.38,
    "tidy": 0.33,
    "decent": 0.27,
    "fair": 0.19,
    "acceptable": 0.11,
    "average": -0.03,
    "ordinary": -0.09,
    "plain": -0.14,
    "unremarkable": -0.21,
    "uneven": -0.28,
    "forgettable": -0.37,
    "awkward": -0.41,
    "weak": -0.47,
    "clumsy": -0.52,
    "dull": -0.56,
    "disappointing": -0.6,
    "poor": -0.64,
    "tedious": -0.68,
    "irritating": -0.73,
    "shoddy": -0.76,
    "miserable": -0.81,
    "dreadful": -0.87,
    "terrible": -0.9,
    "awful": -0.94,
}

FILM_ONLY = frozenset(  # adjectives that do not fit a product
    [
        "brilliant",
        "charming",
        "memorable",
        "clever",
        "likeable",
        "plain",
        "forgettable",
        "uneven",
        "dull",
        "tedious",
    ]
)
PRODUCT_ONLY = frozenset(["tidy", "fair", "shoddy"])

FILM_ASPECTS: dict[str, Lexicon] = {
    "plot": {
        "kept me guessing until the very end": 0.79,
        "rewards close attention": 0.58,
        "moves along nicely": 0.46,
        "is easy to follow": 0.24,
        "takes a few turns too many": -0.26,
        "loses its way after an hour": -0.51,
        "falls apart in the second half": -0.71,
        "makes no sense at all": -0.86,
    },
    "acting": {
        "felt honest in every scene": 0.81,
        "carries the whole story": 0.64,
        "improves as it goes on": 0.36,
        "gets the job done": 0.13,
        "never quite convinced me": -0.34,
        "was stiff from start to finish": -0.67,
        "made me cringe more than once": -0.83,
    },
    "music": {
        "gave me goosebumps": 0.87,
        "stayed with me for days": 0.7,
        "suits the mood well": 0.43,
        "does not get in the way": 0.16,
        "repeats the same tune too often": -0.39,
        "drowns out half of the lines": -0.62,
        "nearly drove me out of the room": -0.85,
    },
    "pacing": {
        "never lets you look away": 0.77,
        "leaves room to breathe": 0.51,
        "settles down after a while": 0.21,
        "drags in the middle": -0.44,
        "tests your patience": -0.59,
        "is slower than a wet Sunday": -0.74,
    },
    "camera work": {
        "turns every frame into a painting": 0.9,
        "finds beauty in small things": 0.68,
        "is steady and clear": 0.35,
        "shakes more than it should": -0.36,
        "gave me a headache": -0.75,
    },
    "dialogue": {
        "sparkles with wit": 0.83,
        "sounds like real people talking": 0.6,
        "has a few good lines": 0.31,
        "explains too much": -0.38,
        "is full of worn-out phrases": -0.63,
        "made the audience groan": -0.78,
    },
    "ending": {
        "moved me to tears": 0.88,
        "ties everything together": 0.62,
        "is a small surprise": 0.29,
        "comes a bit too soon": -0.24,
        "feels like an afterthought": -0.55,
        "ruins what little came before": -0.89,
    },
    "cast": {
        "could not be better chosen": 0.84,
        "plainly enjoys the work": 0.56,
        "does what it can": 0.06,
        "looks lost for most of the film": -0.61,
        "seems to wait for the lunch break": -0.72,
    },
}

GENERAL_ASPECTS: dict[str, Lexicon] = {  # of any product
    "build": {
        "feels as if it will last for decades": 0.86,
        "is sturdier than it looks": 0.57,
        "holds up so far": 0.25,
        "creaks a little": -0.29,
        "feels cheap in the hand": -0.58,
        "came apart within a week": -0.91,
    },
    "price": {
        "is a real bargain": 0.75,
        "is fair for what you get": 0.4,
        "is about what others ask": 0.02,
        "is a bit steep": -0.32,
        "is a bad joke": -0.8,
    },
    "delivery": {
        "arrived a day early": 0.55,
        "went without a hitch": 0.47,
        "took the usual week": -0.02,
        "came two weeks late": -0.57,
        "left the box soaked and crushed": -0.77,
    },
    "manual": {
        "answers every question": 0.59,
        "is short and clear": 0.44,
        "could use a few more pictures": -0.22,
        "reads like a puzzle": -0.53,
        "is missing half of its pages": -0.69,
    },
    "design": {
        "turns heads in my home": 0.71,
        "shows real care": 0.65,
        "is simple and neat": 0.37,
        "looks a little dated": -0.27,
        "gets in its own way": -0.54,
    },
    "support desk": {
        "solved my problem in minutes": 0.78,
        "was patient with my questions": 0.53,
        "replied after three days": -0.35,
        "never wrote back": -0.74,
    },
}

PART_ASPECTS: dict[str, Lexicon] = {  # of some products
    "battery": {
        "lasts far longer than promised": 0.8,
        "gets me through the day": 0.49,
        "is enough for short jobs": 0.18,
        "fades by early afternoon": -0.48,
        "dies after twenty minutes": -0.82,
    },
    "motor": {
        "purrs like a cat": 0.67,
        "has power to spare": 0.63,
        "hums a bit loudly": -0.23,
        "smells of burning when it runs": -0.88,
    },
    "handle": {
        "fits my hand perfectly": 0.74,
        "has a firm grip": 0.5,
        "feels slippery when wet": -0.42,
        "snapped on the second day": -0.93,
    },
    "finish": {
        "still looks like new": 0.6,
        "has an even, quiet shine": 0.41,
        "shows every fingerprint": -0.31,
        "began to peel after a month": -0.7,
    },
}

FILM_ANECDOTES: Lexicon = {
    "the whole room stood up and clapped": 0.91,
    "my daughter asked to see it again at once": 0.76,
    "we talked about it all the way home": 0.61,
    "my father laughed for the first time in weeks": 0.73,
    "nobody looked at a phone": 0.52,
    "my neighbour hummed along": 0.34,
    "my friend checked the time twice": -0.4,
    "I ate all my popcorn out of boredom": -0.5,
    "I dozed off before the last act": -0.65,
    "half of the row left early": -0.79,
    "I asked for my money back": -0.92,
}

PRODUCT_ANECDOTES: Lexicon = {
    "my whole family wanted one": 0.82,
    "it saved a dinner party": 0.72,
    "my neighbour came over to admire it": 0.67,
    "I caught myself smiling while using it": 0.69,
    "it did the job on the first try": 0.5,
    "it took me a moment to find the switch": -0.16,
    "I had to read the steps three times": -0.33,
    "I went back to my old one": -0.66,
    "it stopped working for no reason": -0.79,
    "a part of it broke off in my hand": -0.84,
    "it nearly set the table on fire": -0.96,
}

COMPARISONS: Lexicon = {  # "Compared with the last one I tried, it ..."
    "is in a class of its own": 0.87,
    "is a clear step up": 0.64,
    "is slightly better": 0.32,
    "is much the same": -0.01,
    "is slightly worse": -0.3,
    "is a clear step down": -0.62,
    "does not even come close": -0.75,
}

VERDICTS: Lexicon = {  # "All in all, ..."
    "I could not be happier": 0.95,
    "I recommend it with all my heart": 0.9,
    "it is worth every penny": 0.77,
    "I would gladly choose it again": 0.7,
    "I am pleased with it": 0.53,
    "it has more strengths than faults": 0.39,
    "it does what it says": 0.26,
    "it will do for now": 0.07,
    "it is not for me": -0.25,
    "I expected more": -0.43,
    "I cannot recommend it": -0.6,
    "I regret the money": -0.72,
    "it is a waste of time": -0.81,
    "I want nothing more to do with it": -0.88,
    "it is the worst of its kind": -0.97,
}

_TABLES: tuple[Lexicon, ...] = (
    *FILM_ASPECTS.values(),
    *GENERAL_ASPECTS.values(),
    *PART_ASPECTS.values(),
    FILM_ANECDOTES,
    PRODUCT_ANECDOTES,
    COMPARISONS,
    VERDICTS,
)

PHRASES: Lexicon = {phrase: valence for table in _TABLES for phrase, valence in table.items()}
