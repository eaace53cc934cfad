"""A small corpus of several made-up languages: text that a router can tell apart from a few tokens.

Each language has its own syllables, word lengths and punctuation. Equal seeds give equal bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

CONSONANTS = ("ptkmnl", "bdgvzr", "shjfwy", "cxqhrt")
VOWELS = ("aio", "eu", "aeiou", "yøå")
MARKS = (". ", "; ", " | ", "!\n")
WORDS_OF_A_LANGUAGE = 120


def write_languages(path: Path, *, documents: int, seed: int, languages: int = 4) -> Path:
    """Writes JSON lines, `documents` of each language, 400 to 1,400 characters each."""
    lines = []
    for language in range(languages):
        rng = random.Random(f"{seed} {language}")
        words = [_word(rng, language) for _ in range(WORDS_OF_A_LANGUAGE)]
        for number in range(documents):
            name = f"language-{language}"
            text = _text(rng, words, language)
            record = {"id": f"{name}/{number}", "text": text, "domain": name, "source": f"{name}/{number}"}
            lines.append(json.dumps(record, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _word(rng: random.Random, language: int) -> str:
    syllables = rng.randint(1, 2 + language % 3)
    return "".join(rng.choice(CONSONANTS[language]) + rng.choice(VOWELS[language]) for _ in range(syllables))


def _text(rng: random.Random, words: list[str], language: int) -> str:
    wanted = rng.randint(400, 1400)
    text = ""
    while len(text) < wanted:
        # Low ranks are common, as in any language.
        sentence = [words[min(int(rng.expovariate(0.08)), len(words) - 1)] for _ in range(rng.randint(3, 9))]
        text += " ".join(sentence) + MARKS[language]
    return text
