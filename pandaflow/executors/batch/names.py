"""What scripts tell the jobs in them. Imports nothing: every element of an array starts with it."""

#: Set in every script: the job's id, and the element of its array from 0 (empty: no array).
ID, INDEX = "PANDAFLOW_BATCH_ID", "PANDAFLOW_BATCH_INDEX"
