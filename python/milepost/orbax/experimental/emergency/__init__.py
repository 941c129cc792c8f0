"""The names of `orbax.checkpoint.experimental.emergency`, for programs that import them in any case.

There is no emergency manager here: each constructor refuses, and says what to use.
"""
