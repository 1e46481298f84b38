"""A real OpenID Connect provider on this machine, for tests: ``oidc-provider`` for Node.js."""
