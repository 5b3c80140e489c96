"""The only writers to the API server: bind, wake, preempt, plan gangs, hold the lease, keep the certificate."""
