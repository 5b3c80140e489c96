"""What a container gets, and whether it may start: joins the kubelet's side and the node's side.

Only `app` imports it.
"""
