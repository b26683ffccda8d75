"""The clauses that every tokenizer must meet, as a library for the command line and for pytest."""

from dct_tokenizer.conformance.suite import CLAUSES, Verdict, run_suite

__all__ = ["CLAUSES", "Verdict", "run_suite"]
