"""The HTTP scheduler extender: it answers kube-scheduler's filter, prioritize, bind and preempt calls."""
