"""Globus Compute on one machine: a stand-in of its web service, real broker, real endpoint.

The SDK and the endpoint are Globus Compute's own, unmodified; only the hosted web service is
replaced. `local.Globus` starts all of it; `service` says what the stand-in is not.
"""
