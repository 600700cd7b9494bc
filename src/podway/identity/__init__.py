"""Certificates: who may speak for a cluster, and with whom its agents talk.

orders        what is asked for: an authority, or a certificate from one; plain data
certificates  makes them (X.509); alone needs the `cryptography` package
apart         the same in a process of its own, for those who must stay small
rotation      which authority signs, and when a new one is due; pure
keeper        the cluster's authorities in the store, agreed by compare-and-swap
tls           TLS 1.3 with these certificates, and its failures told in words
"""
