"""The conformance suite that every tokenizer must pass, for the command line and pytest."""

from dct_tokenizer.conformance.suite import CLAUSES, Verdict, run_suite

__all__ = ["CLAUSES", "Verdict", "run_suite"]
