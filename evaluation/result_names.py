"""Names of the files that scores of a run are kept in, in the run's folder."""

#: of `python -m evaluation answers`
ANSWERS_NAME = "answers.jsonl"
#: of `python -m evaluation words`
WORDS_NAME = "words.jsonl"
