"""Bytes in, bytes out: HTTP for kube-scheduler, the webhook and the read API. Decides nothing."""
