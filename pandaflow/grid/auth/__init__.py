"""Who somebody is: tokens and certificates checked by the server, got and kept by the client.

======================  =======================================================================
module                  what it holds
======================  =======================================================================
:mod:`.verify`          server: from a header or a certificate to an :class:`..identity.Actor`
:mod:`.policy`          server: the one file that says whom to trust and what they may do
:mod:`.keys`            server: public keys of an issuer, cached and rotated
:mod:`.x509`            server: the identity behind a chain of certificates with proxies
:mod:`.tls`             server: TLS that takes client certificates and shows them to the app
:mod:`.credentials`     client: where a token comes from
:mod:`.signin`          client: ``pandaflow login``, by OIDC's device flow
:mod:`.cache`           client: the files that keep sign-ins
:mod:`.oauth`           client: what is asked of an issuer
:mod:`.web`             both: JSON from issuers and servers, over HTTPS only
======================  =======================================================================

Nothing is imported here: clients do without the server's packages.
"""
