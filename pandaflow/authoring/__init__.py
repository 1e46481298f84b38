"""How a workflow is written: tasks, sources, and the shapes that join them.

Calling a task inside a ``@pf.workflow`` function runs nothing: the call is noted in the
active :class:`~pandaflow.authoring.trace.Trace`, and a
:class:`~pandaflow.authoring.collections.Collection` stands for its outputs. When the function
returns, the trace holds the whole workflow as a :class:`~pandaflow.core.model.WorkflowSpec` and
the pickled payloads beside it.
"""
