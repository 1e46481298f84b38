"""The pool behind a REST API: application, limits, serving."""
