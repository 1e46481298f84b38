"""Routes of the REST API, a module for each who asks."""
