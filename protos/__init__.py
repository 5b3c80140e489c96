"""Wire formats of the kubelet: the `.proto` files and the code that `make protos` generates from them."""
